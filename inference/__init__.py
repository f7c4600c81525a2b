"""Queries of a trained model: masks, scores, selections of Gaussians, exports and videos."""
