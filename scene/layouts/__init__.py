"""Dataset layouts: Ref-LERF, LERF-OVS and 3D-OVS annotations, splits and masks."""
