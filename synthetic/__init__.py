"""Procedural referring scenes: a table top with objects, exact masks and sentences that single out one object.

`python -m synthetic --out DIR --seed S` writes one scene in the Ref-LERF layout. From the bottom up:
`geometry` intersects rays with lathes, tori and polyhedra; `catalogue` builds mugs, bowls and other objects of them;
`textures` and `tabletop` colour them and the table; `world` traces rays among them; `lighting` bakes light onto them;
`dome` has the cameras and `layout` places the objects; `raycast` takes pictures; `relations` decides which spatial
relations hold; `sentences` and `wording` turn them into referring sentences; `export` writes the files, `overview` the
contact sheet, and `generate` runs it all. Nothing here reads a scene, trains or renders Gaussians.

World: metres, x to the right and y away from the viewer, z up, table top at z = 0 centred on the origin. Cameras
look from the -y side, so the front edge of the table is the one at negative y.
"""
