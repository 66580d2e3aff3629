"""Where operations of a compiled program come from: the stack frames in its HLO text. Standard library only."""

import dataclasses
import re
from pathlib import PurePath


@dataclasses.dataclass(frozen=True)
class Frame:
    """A line of Python that an operation was traced at."""

    file: str
    function: str
    line: int

    def __str__(self) -> str:
        """'model/layers.py:43 linear', the last folder and the file."""
        return f"{'/'.join(PurePath(self.file).parts[-2:])}:{self.line} {self.function.rpartition('.')[2]}"


class Sources:
    """The stacks of a program's operations, by stack_frame_id, or by source_file and source_line in older texts."""

    def __init__(self, text: str):
        rows = {name: _table(text, name) for name in ("FileNames", "FunctionNames", "FileLocations", "StackFrames")}
        named = lambda table, key: rows[table].get(key, "").strip('"')
        fields = lambda row: {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", row)}
        self._frames: dict[int, tuple[Frame, int]] = {}
        parents = {key: fields(row) for key, row in rows["StackFrames"].items()}
        # Printed with one added where 0 means none: then the first frame, which has no parent, names itself.
        added = parents.get(1, {}).get("parent_frame_id") == 1
        for key, frame in parents.items():
            place = fields(rows["FileLocations"].get(frame["file_location_id"], ""))
            file, function = (place.get(f"{name}_name_id", 0) for name in ("file", "function"))
            found = Frame(named("FileNames", file), named("FunctionNames", function), place.get("line", 0))
            self._frames[key] = found, frame.get("parent_frame_id", 0) - added

    def stack(self, attributes: str) -> list[Frame]:
        """The frames of an instruction's attributes, innermost first; empty where it names none."""
        if match := re.search(r'source_file="([^"]*)"(?: source_line=(\d+))?', attributes):
            return [Frame(match[1], "", int(match[2] or 0))]
        match = re.search(r"stack_frame_id=(\d+)", attributes)
        stack, key = list[Frame](), int(match[1]) if match else 0
        while key in self._frames and len(stack) < len(self._frames):
            frame, key = self._frames[key]
            stack.append(frame)
        return stack


def _table(text: str, name: str) -> dict[int, str]:
    """The numbered rows under a title of the text's head."""
    match = re.search(rf"^{name}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
    rows = (line.split(" ", 1) for line in match[1].splitlines()) if match else ()
    return {int(key): row for key, row in rows}
