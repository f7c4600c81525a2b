"""Shared test rigs: small scenes, models and Gaussians that several tests build on."""
