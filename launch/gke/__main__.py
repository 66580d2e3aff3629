"""Runs a command as a JobSet on GKE, on TPU slices or on GPU nodes.

The command gets --cluster=tpu or --cluster=jobset where there are several hosts. A host that is taken away, or a notice
(exit code 75), starts all again; other failures do so at most --restarts times.
"""

import argparse
import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from distill.config import ConfigError
from distill.config.flags import Parser, at_least
from launch.support import cli

# Name of the node label and chips a host, for slices of more than one host.
TPUS = {
    "v4": ("tpu-v4-podslice", 4),
    "v5e": ("tpu-v5-lite-podslice", 4),
    "v5p": ("tpu-v5p-slice", 4),
    "v6e": ("tpu-v6e-slice", 4),
}
GPUS = {"a100": "nvidia-tesla-a100", "h100": "nvidia-h100-80gb", "h200": "nvidia-h200-141gb"}
GPUS_PER_NODE = 8
_SHM = {"name": "shm", "emptyDir": {"medium": "Memory"}}


EXAMPLES = (
    "distill gke --name=student --image=IMAGE --tpu=v5e --topology=4x4 -- distill train --workdir=gs://BUCKET/student",
    "distill gke --name=student --image=IMAGE --gpu=h100 --nodes=2 -- distill train --workdir=gs://BUCKET/student",
    "distill gke --name=student --image=IMAGE --tpu=v6e --topology=2x4 --dry-run -- distill train --workdir=gs://B/s",
)


def parser() -> Parser:
    parser = Parser("gke", __doc__, examples=EXAMPLES)
    add = parser.group("the job")
    add("--name", required=True, metavar="NAME", help="lower-case letters, digits and '-', at most 40")
    add("--image", required=True, metavar="IMAGE", help="the container, made from launch/gke/Dockerfile")
    add("--dry-run", action="store_true", help="print the manifest; without it, it goes to kubectl apply")
    add("--restarts", type=at_least(0), default=10, metavar="N", help="after failures other than a notice")
    add("--grace", type=at_least(1), default=120, metavar="SECONDS", help="from the notice to the end, for saving")
    add = parser.group("the machines", "one of --tpu and --gpu")
    add("--tpu", choices=TPUS, help="slices of this TPU")
    add("--topology", default="", metavar="AxB[xC]", help="of --tpu: chips of a slice, such as 4x4")
    add("--slices", type=at_least(1), default=1, metavar="N", help="of --tpu")
    add("--gpu", choices=GPUS, help=f"nodes of {GPUS_PER_NODE} of this GPU")
    add("--nodes", type=at_least(1), default=1, metavar="N", help="of --gpu")
    add = parser.group("the cluster")
    add("--queue", default="", metavar="NAME", help="the local queue of Kueue that gets it")
    add("--namespace", default="default", metavar="NAME", help="of Kubernetes")
    add("--service-account", default="default", metavar="NAME", help="that may use the bucket")
    add("--volume", default="", metavar="CLAIM:/PATH", help="a PersistentVolumeClaim (Filestore), mounted at a path")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    split = argv.index("--") if "--" in argv else len(argv)
    flags = parser().parse_args(argv[:split])
    manifest = render(flags, argv[split + 1 :])
    if flags.dry_run:
        print(manifest, end="")
        return 0
    try:
        return subprocess.run(["kubectl", "apply", "-f", "-"], input=manifest, text=True).returncode
    except FileNotFoundError:
        raise ConfigError("launch.gke: there is no kubectl here; install it, or print with --dry-run") from None


def render(given: argparse.Namespace, command: Sequence[str], labels: Mapping[str, str] | None = None) -> str:
    """The manifest, with `labels` of the caller's. Raises ConfigError for what does not go together."""
    if not command:
        raise ConfigError("launch.gke: there is no command after --")
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", given.name):
        raise ConfigError(f"--name={given.name}: wanted lower-case letters, digits and '-', at most 40")
    if bool(given.tpu) == bool(given.gpu):
        raise ConfigError("launch.gke: give one of --tpu and --gpu")
    if given.tpu:
        if not re.fullmatch(r"\d+(x\d+){1,2}", given.topology):
            raise ConfigError(f"--topology={given.topology}: wanted the slice's chips, such as 4x4 or 4x4x4")
        label, per_host = TPUS[given.tpu]
        chips = math.prod(int(size) for size in given.topology.split("x"))
        if chips % per_host:
            raise ConfigError(f"--topology={given.topology}: its {chips} chips are no multiple of {per_host} a host")
        jobs, pods, device, cluster = given.slices, chips // per_host, "google.com/tpu", "tpu"
        selector = {"cloud.google.com/gke-tpu-accelerator": label, "cloud.google.com/gke-tpu-topology": given.topology}
    else:
        jobs, pods, device, cluster, per_host = 1, given.nodes, "nvidia.com/gpu", "jobset", GPUS_PER_NODE
        selector = {"cloud.google.com/gke-accelerator": GPUS[given.gpu]}
    claim, _, path = given.volume.partition(":")
    if given.volume and not (claim and path.startswith("/")):
        raise ConfigError(
            f"--volume={given.volume}: wanted the name of a claim and where it is mounted, as work:/mnt/work"
        )
    several = [f"--cluster={cluster}"] if jobs * pods > 1 else []
    exclusive = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"} if given.tpu else {}
    template = Template(Path(__file__).with_name("jobset.yaml").read_text("utf-8"))
    # JSON is YAML; what a user gives is quoted by it.
    return template.substitute(
        name=given.name,
        namespace=json.dumps(given.namespace),
        labels=json.dumps({**(labels or {}), **({"kueue.x-k8s.io/queue-name": given.queue} if given.queue else {})}),
        annotations=json.dumps(exclusive),
        restarts=given.restarts,
        jobs=jobs,
        pods=pods,
        device=device,
        per_host=per_host,
        service_account=json.dumps(given.service_account),
        grace=given.grace,
        selector=json.dumps(selector),
        mounts=json.dumps(
            [{"name": "shm", "mountPath": "/dev/shm"}, *([{"name": "shared", "mountPath": path}] * bool(claim))]
        ),
        volumes=json.dumps(
            [_SHM, *([{"name": "shared", "persistentVolumeClaim": {"claimName": claim}}] * bool(claim))]
        ),
        image=json.dumps(given.image),
        # exec: the notice (SIGTERM) goes to the container's first process.
        command=json.dumps(["/bin/bash", "-c", "exec " + shlex.join([*command, *several])]),
    )


if __name__ == "__main__":
    sys.exit(cli.guard(main))
