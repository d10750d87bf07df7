"""Show the content of a bundle: parts, variants, sizes and verified figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from segagent_rt.cli import console
from segagent_rt.cli.parameters import BundleArgument, JsonOption, check_options, option

if TYPE_CHECKING:
    from segagent_rt.bundle.bundle import Bundle

GIB = 1 << 30
LONGEST_VALUE = 100
ONLY_WITH = {"everything": ("a bundle",), "verify": ("a bundle",)}


def command(
    context: typer.Context,
    bundle: BundleArgument = None,
    verify: Annotated[bool, option("Check the hash of every file.", "--verify")] = False,
    board: Annotated[
        str | None,
        option("Estimate whether it fits: orin-nx-16, agx-orin-64, thor, rtx-12, ...", "--board"),
    ] = None,
    everything: Annotated[
        bool, option("Also print origins, licences and all verified figures.", "--all")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Reads only the manifests, unless --verify is given."""
    check_options(context, "--board" if board else "a bundle", ONLY_WITH)
    from segagent_rt.bundle.bundle import open_bundle
    from segagent_rt.bundle.manifest import to_json

    opened = open_bundle(bundle)
    if board is not None:
        found = _budget(opened, board)
        if as_json:
            console.show_json(found)
        else:
            console.show(_budget_text(found))
        return
    if verify:
        for part in opened.parts.values():
            part.verify()
    document: dict[str, Any] = {
        "bundle": opened.index.name,
        "folder": str(opened.folder),
        "digest": opened.digest,
        "about": opened.index.about,
        "accept_unrated": to_json(opened.index.accept_unrated),
        "loop_gain": {name: to_json(gain) for name, gain in opened.index.loop_gain.items()},
        "verified_files": verify,
        "parts": {
            name: {"digest": part.digest, **to_json(part.manifest)}
            for name, part in opened.parts.items()
        },
        "strangers": [str(p) for part in opened.parts.values() for p in part.unlisted_files()],
    }
    if as_json:
        console.show_json(document)
    else:
        console.show(_text(document, everything=everything))


def _text(document: dict[str, Any], *, everything: bool) -> str:
    lines = [f"{document['bundle']}  {document['digest']}  {document['folder']}"]
    if document["about"]:
        lines.append(document["about"])
    for data, measured in document["loop_gain"].items():
        gain, old = measured["returned"] - measured["one_shot"], ""
        if measured["digest"] != document["digest"]:
            old = ", of an earlier content, not used"
        lines.append(f"loop_gain on {data}: {gain:+.4f} ({measured['samples']} expressions{old})")
    lines += _accept_unrated(document)
    for name, part in document["parts"].items():
        size = sum(record["size"] for record in part["files"].values())
        lines += ["", f"{name}: {part['family']}, {size / 1e6:.1f} MB, {part['digest']}"]
        for variant, record in part["variants"].items():
            graphs = ", ".join(f"{role} {file}" for role, file in record["graphs"].items())
            lines.append(f"  {variant} ({record['device']}, {record['precision']}): {graphs}")
        for title in ("provenance", "verified"):
            shown = part[title] if everything else _main_values(part[title])
            lines += _nested(title, shown, "  ")
    if not everything:
        lines += ["", "more: --all, or --json"]
    if document["verified_files"]:
        lines += ["", "every file is the one that was exported"]
    for path in document["strangers"]:
        lines.append(f"not in the manifest, never opened: {path}")
    return "\n".join(lines)


def _accept_unrated(document: dict[str, Any]) -> list[str]:
    measured = document["accept_unrated"]
    if measured is None:
        return []
    old = "" if measured["digest"] == document["digest"] else ", of an earlier content, not used"
    looks = f"{measured['looks']:.2f} looks instead of {measured['looks_rated']:.2f}"
    return [f"accept_unrated: {looks} ({measured['samples']} expressions{old})"]


def _main_values(record: dict[str, Any]) -> dict[str, Any]:
    """The values of a record that are short and no records themselves."""
    return {
        name: value
        for name, value in record.items()
        if not isinstance(value, (dict, list)) and len(str(value)) <= LONGEST_VALUE
    }


def _nested(title: str, value: Any, indent: str) -> list[str]:
    if isinstance(value, dict):
        if not value:
            return []
        inner = [line for k, v in value.items() for line in _nested(k, v, indent + "  ")]
        return [f"{indent}{title}:", *inner]
    return [f"{indent}{title}: {value}"]


def _budget(bundle: Bundle, name: str) -> dict[str, Any]:
    from segagent_rt.bench.boards import board
    from segagent_rt.bench.budget import budget, suitable_variants
    from segagent_rt.bundle.manifest import to_json

    where = board(name)
    found = budget(bundle, where)
    suits = suitable_variants(bundle, where)
    return {
        "bundle": bundle.index.name,
        "board": name,
        "shared": where.shared,
        **to_json(found),
        "left": found.left,
        "left_building": found.left_building,
        "fits": found.fits,
        "variants": [to_json(each) for each in suits],
    }


def variant_line(fit: dict[str, Any]) -> str:
    """Whether a variant suits a board, in one line."""
    need, taken = fit["need"], fit["tensorrt"]
    since = f", TensorRT {taken} or newer" if taken and not fit["problem"] else ""
    total = need["weights"] + need["buffers"] + need["activations"]
    verdict = f"no: {fit['problem']}" if fit["problem"] else "suits"
    return (
        f"{need['part']} {need['variant']}: {verdict}; {total / GIB:.2f} GiB to run, "
        f"{need['building'] / GIB:.2f} GiB to build{since}"
    )


def _budget_text(found: dict[str, Any]) -> str:
    def line(title: str, *sizes: int) -> str:
        return f"{title:28s}" + "".join(f"{size / GIB:13.2f}" for size in sizes)

    columns = ("weights", "buffers", "activations", "together")
    lines = [
        f"{found['bundle']} on {found['board']}, in GiB; activations are estimated",
        "",
        " " * 28 + "".join(f"{column:>13s}" for column in columns),
    ]
    for need in found["needs"]:
        sizes = [need[column] for column in columns[:-1]]
        lines.append(line(f"{need['part']} {need['variant']}", *sizes, sum(sizes)))
    lines += ["", *map(variant_line, found["variants"]), ""]
    building = max(need["building"] for need in found["needs"])
    lines += [
        "",
        line(
            f"memory{', of processor and GPU' if found['shared'] else ' of the GPU'}",
            found["memory"],
        ),
        line("kept for others (assumed)", found["kept"]),
        line("left", found["left"]),
        "",
        "it fits" if found["fits"] else "it does not fit",
        f"building its largest engine takes about {building / GIB:.2f} GiB of the system's memory"
        + (", more than there is" if found["shared"] and found["left_building"] < 0 else ""),
    ]
    return "\n".join(lines)
