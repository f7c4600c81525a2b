"""The method of the paper: the referring field, its text encoder and its losses."""
