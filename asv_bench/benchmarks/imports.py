"""What `import slmq` costs: every short command pays it."""


class Import:
    """Time of an import in a fresh interpreter."""

    def timeraw_slmq(self) -> str:
        return "import slmq"

    def timeraw_command_line(self) -> str:
        return "import slmq.cli"
