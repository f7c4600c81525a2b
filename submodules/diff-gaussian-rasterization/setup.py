"""pip install ./submodules/diff-gaussian-rasterization

Puts the package, its C++ and CUDA sources and the libraries built from them into the wheel, with the build description
of diff_gaussian_rasterization/build.py. If nothing can be built, the install succeeds all the same: the package tries
again on first use, and otherwise falls back to its PyTorch implementation with a warning.
"""

import shutil
import sys
import types
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
NAME = "diff_gaussian_rasterization"

# The package's __init__.py imports torch, which a build environment does not have: give its modules a bare parent.
package = types.ModuleType(NAME)
package.__path__ = [str(HERE / NAME)]
sys.modules[NAME] = package

from diff_gaussian_rasterization import build, constants  # noqa: E402


class BuildWithLibraries(build_py):
    """Copies the Python files and sources, then compiles the libraries that this machine can build and use."""

    def run(self):
        # Files renamed since an earlier build must not reach the wheel.
        shutil.rmtree(Path(self.build_lib) / NAME, ignore_errors=True)
        super().run()
        if self.editable_mode:
            return  # the sources of an editable install change; the build on first use follows them
        for target in build.targets_for_install():
            try:
                build.build_library(Path(self.build_lib) / NAME / "_native" / target, target)
            except build.BuildError as error:
                print(f"warning: the {target} library was not built; see docs/INSTALL.md.\n{error}", file=sys.stderr)


class PlatformWheel(bdist_wheel):
    """A wheel for any Python 3 of one platform: the libraries have a C ABI, independent of Python."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


class BinaryDistribution(Distribution):
    """A distribution that counts as platform-dependent although setuptools compiles nothing itself."""

    def has_ext_modules(self):
        return True


setup(
    name="diff-gaussian-rasterization",
    version=constants.VERSION,
    description="Differentiable Gaussian rasteriser with run-time channels (ReferSplat project)",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[NAME],
    package_data={NAME: ["csrc/*", "csrc/*/*"]},
    # torch is needed at run time but not listed: the user picks the build that fits the GPU.
    cmdclass={"build_py": BuildWithLibraries, "bdist_wheel": PlatformWheel},
    distclass=BinaryDistribution,
)
