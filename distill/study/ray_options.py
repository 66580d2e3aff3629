"""What --engine says of a Ray cluster; read without Ray, so that a dry run needs none."""

import dataclasses
import re
import shlex

from distill.config import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Which cluster, and what a host of it is.

    address: of its head ('auto': the cluster of this node). slot: what a host is, as 'GPU:8'. hosts: how many there may
    be, where an autoscaler makes them; 0: those that there are.
    """

    address: str = "auto"
    slot: tuple[str, float] = ("CPU", 1.0)
    hosts: int = 0

    @classmethod
    def parse(cls, text: str) -> "RayOptions":
        """'--address=HOST:PORT --slot=TPU:4 --hosts=16'. Raises ConfigError."""
        values = {}
        for word in shlex.split(text):
            match = re.fullmatch(r"--(address|slot|hosts)=(\S+)", word)
            if not match:
                raise ConfigError(f"--engine: got {word!r}, wanted --address=HOST:PORT, --slot=GPU:8 or --hosts=16")
            values[match[1]] = match[2]
        slot = re.fullmatch(r"(\w+):(\d+)", values.get("slot", "CPU:1"))
        if not slot or not re.fullmatch(r"\d{1,6}", values.get("hosts", "0")):
            raise ConfigError(f"--engine={text}: wanted a slot such as CPU:1, GPU:8 or TPU:4, and a number of hosts")
        return cls(
            address=values.get("address", "auto"), slot=(slot[1], float(slot[2])), hosts=int(values.get("hosts", "0"))
        )
