"""Files of posed photos: COLMAP models, transforms.json, pictures, and removal of lens distortion."""
