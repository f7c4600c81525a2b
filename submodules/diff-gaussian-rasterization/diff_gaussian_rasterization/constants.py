"""Constants that define a picture, equal to those of csrc/constants.h (a test compares them)."""

VERSION = "0.1.0"  # of this package; the compiled library must carry the same
ABI_VERSION = 4  # incremented with every change of a signature or layout in csrc/dgr.h, dgr_cuda.h or dgr_step.h

TILE = 16  # pixels along the side of a tile
NEAR_PLANE = 0.2  # camera depth, in scene units, below which a Gaussian is invisible
ALPHA_FLOOR = 1.0 / 255.0  # a smaller alpha is skipped
ALPHA_CAP = 0.99  # alpha is clamped here; its gradient passes straight through
TRANSMITTANCE_STOP = 1e-4  # a contribution that would take the transmittance below it ends the pixel
LOW_PASS = 0.3  # square pixels added to the diagonal of the 2D covariance
FRUSTUM_MARGIN = 1.3  # x/z and y/z of the Jacobian stay within this many half fields of view of the centre
RADIUS_SIGMAS = 3.0  # half side of the square that a Gaussian contributes to
RADICAND_FLOOR = 0.1  # lower bound under the root of the larger eigenvalue
W_EPSILON = 1e-7  # added to the homogeneous w before the division
MAX_SH_DEGREE = 3
