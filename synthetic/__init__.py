"""Procedural referring scenes: a table top with objects, exact masks and sentences that single out one object.

`python -m synthetic --out DIR --seed S` writes one scene in the Ref-LERF layout. From the bottom up:
`geometry` intersects rays with lathes, tori and polyhedra; `world` builds mugs, bowls and other objects of them and
traces rays among them; `textures` colours them and the table; `raycast` bakes light and takes pictures; `relations`
decides which spatial relations hold; `sentences` turns them into referring sentences; `export` writes the files;
`generate` places objects and cameras and runs it all. Nothing here reads a scene, trains or renders Gaussians.

World: metres, x to the right and y away from the viewer, z up, table top at z = 0 centred on the origin. Cameras
look from the -y side, so the front edge of the table is the one at negative y.
"""
