"""What a store of signals holds, in a few lines for people."""

from distill.teacher.signals.manifest import SignalManifest


def describe(manifest: SignalManifest) -> list[str]:
    """Teacher, windows, size and fidelity of a store."""
    recipe, teacher = manifest["recipe"], manifest["teacher"]
    windows, validation = recipe["windows"], teacher.get("validation")
    loss = f"loss {validation['loss']:.4f}" if validation else "its own loss is not known"
    lines = [
        f"  teacher  {recipe['teacher']['run']}, {loss}",
        f"  windows  {windows['count']:,d} of {windows['of']:,d}, {recipe['data']['seq_len']} tokens each, "
        f"in {len(manifest['shards'])} shards",
        f"  size     {manifest['bytes_per_token']:.1f} bytes a token",
    ]
    if "coverage" in manifest:
        coverage = manifest["coverage"]
        return [
            *lines,
            f"  fidelity {coverage['covered']:.4f} of the mass is covered, at 5 % of the tokens less than "
            f"{coverage['covered_p05']:.4f} (on {coverage['tokens']} tokens)",
            f"           of the rest only its mass is known: spread evenly, it is at most "
            f"{coverage['tail_kl_most']:.4g} nats a token from the truth; storing it costs "
            f"{coverage['codec_kl']:.2g} nats",
        ]
    fidelity = manifest["fidelity"]
    known = {name: "-" if value is None else f"{value:.5g}" for name, value in fidelity.items()}
    return [
        *lines,
        f"  fidelity KL(whole, stored) {known['kl']}, KL(stored, whole) {known['kl_back']} nats, "
        f"cosine of gradients {known['gradient_cosine']} (on {fidelity['tokens']} tokens)",
    ]
