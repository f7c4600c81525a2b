"""What changes over the steps of the RGB stage: learning rates and the last densification."""

from __future__ import annotations

from arguments import RGBParams

# of (adc, mcmc) as published for 30,000 steps: last step with densification, its share of all steps, most Gaussians
LAST_STEP = {"adc": 15_000, "mcmc": 25_000}
LAST_SHARE = {"adc": 1 / 2, "mcmc": 5 / 6}
COOLING_FROM = 0.9  # of all steps: where --cool_down begins
SH_DIVISOR = 20  # of the rate of SH degree 0: what higher degrees take
CAP = {"adc": 5_000_000, "mcmc": 1_000_000}


def last_densification(params: RGBParams) -> int:
    """The last step that may change the set of Gaussians; shorter runs than the published keep its share."""
    if params.densify_until_iter is not None:
        return params.densify_until_iter
    return min(LAST_STEP[params.densification], int(LAST_SHARE[params.densification] * params.rgb_iterations))


def most_gaussians(params: RGBParams) -> int:
    """The bound of --cap_max, or its default."""
    return CAP[params.densification] if params.cap_max is None else params.cap_max


def log_linear(first: float, last: float, iteration: float, iterations: float) -> float:
    """Decay from `first` to `last` over the steps, linear in the logarithm."""
    share = min(iteration / max(iterations, 1), 1.0)
    return first ** (1 - share) * last**share


def learning_rates(params: RGBParams, extent: float, iteration: int) -> dict[str, float]:
    """Learning rate of each parameter at a 1-based step; positions move in units of the scene's extent."""
    position = log_linear(params.position_lr_init, params.position_lr_final, iteration, params.rgb_iterations)
    cooling = max(0, iteration - COOLING_FROM * params.rgb_iterations)
    cooled = log_linear(1, params.cool_down, cooling, (1 - COOLING_FROM) * params.rgb_iterations)
    sh = params.rgb_feature_lr / SH_DIVISOR if params.rgb_sh_lr is None else params.rgb_sh_lr
    return {
        "xyz": position * extent,
        "features_dc": params.rgb_feature_lr * cooled,
        "features_rest": sh * cooled,
        "scaling": params.scaling_lr * cooled,
        "rotation": params.rotation_lr * cooled,
        "opacity": params.opacity_lr * cooled,
    }
