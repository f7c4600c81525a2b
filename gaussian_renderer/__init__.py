"""Pictures of a Gaussian model: colour with `render`, K per-Gaussian scalars with `render_scores`."""
