"""What `import slmq` costs: every short command pays it."""

from __future__ import annotations

from importlib.util import find_spec

from .common import once_for_all_isas


class Import:
    """An import in a fresh interpreter."""

    version = "1"
    timeout = 60

    def setup(self) -> None:
        once_for_all_isas()

    def timeraw_slmq(self) -> str:
        return "import slmq"

    def timeraw_load(self) -> str:
        """What loading a model needs, native module included."""
        return "import slmq; slmq.load"


class CommandLine:
    """What every command pays before it does anything."""

    version = "1"
    timeout = 60

    def setup(self) -> None:
        once_for_all_isas()
        if find_spec("slmq.cli") is None:
            raise NotImplementedError("this commit has no command line")

    def timeraw_import(self) -> str:
        return "import slmq.cli"
