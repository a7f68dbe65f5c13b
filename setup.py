"""Build the C kernels with the package. Everything else about it is in pyproject.toml.

Without a compiler the package installs all the same, and serves with the reference kernels.
"""

from __future__ import annotations

import sys
from importlib import util
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent

# By path: the package is not importable while it is being built.
_SPEC = util.spec_from_file_location("kernel_build", ROOT / "experts/kernels/cpu/build.py")
assert _SPEC is not None
assert _SPEC.loader is not None
kernel_build = util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = kernel_build
_SPEC.loader.exec_module(kernel_build)


class BuildKernels(build_ext):
    """Compile each op file once per instruction set, which an `Extension` cannot say."""

    def build_extension(self, ext: Extension) -> None:
        """Build one library; a failure is said and does not end the install."""
        library = next(lib for lib in kernel_build.LIBRARIES if _extension_name(lib) == ext.name)
        target = Path(self.get_ext_fullpath(ext.name))
        try:
            kernel_build.build(library, target.parent, Path(self.build_temp) / "kernels")
        except kernel_build.BuildError as error:
            self.warn(f"no C kernels, the reference will serve: {error}")

    def get_ext_filename(self, fullname: str) -> str:
        """Name it plainly: it is loaded with ctypes and does not depend on Python's version."""
        return fullname.replace(".", "/") + ".so"


def _extension_name(library: object) -> str:
    folder, name = library.folder, library.name  # type: ignore[attr-defined]
    return ".".join((*folder.parts, name.removesuffix(".so")))


setup(
    ext_modules=[
        Extension(_extension_name(library), sources=[], optional=True)
        for library in kernel_build.LIBRARIES
    ],
    cmdclass={"build_ext": BuildKernels},
)
