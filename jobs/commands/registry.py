"""promote, rollback, reproduce: which registered version is the champion of a voice, and what one was made of."""

import argparse
from typing import TYPE_CHECKING

from jobs.command import DONE, TROUBLED, Command, add_tracking, add_version, config_of, tracking_uri_of
from jobs.terminal import complain, say, say_json, say_table

if TYPE_CHECKING:
    from jobs.config import JobConfig
    from jobs.promote import Verdict
    from jobs.reproduce import Again, Provenance
    from jobs.tracking import Registry


def _promote(options: argparse.Namespace) -> int:
    from jobs.promote import consent_of, promote
    from jobs.workspace import Workspace

    if options.force and not options.reason:
        raise ValueError("--force needs --reason TEXT: it is kept with the version")
    if options.reason and not options.force:
        raise ValueError("--reason goes with --force: without it the gate's numbers are the reason")
    config = config_of(options)
    verdict = promote(
        _registry(options, config),
        options.voice,
        config,
        version=options.version,
        reason=options.reason,
        consent=consent_of(Workspace.open(options.workspace), options.voice),
        dry_run=options.dry_run,
    )
    if options.json:
        say_json(verdict.record(), indent=1)
    else:
        _show(verdict, dry_run=options.dry_run)
    return DONE if verdict.is_champion else TROUBLED


def _show(verdict: "Verdict", *, dry_run: bool) -> None:
    named = f"{verdict.voice}: version {verdict.version}"
    for found in verdict.comparisons:
        say(f"  {found}")
    if not verdict.is_champion:
        complain(f"gsv: {named} stays out: {'; '.join(verdict.refusals)}")
        return
    if verdict.forced:
        say(f"  forced, despite: {'; '.join(verdict.refusals)}")
    would = "would become" if dry_run else "is now"
    for alias in verdict.moved:
        before = verdict.before[alias]
        say(f"{named} {would} {alias}" + (f", which was version {before}" if before else ", the first"))
    if not verdict.moved:
        say(f"{named} is the champion already")
    if verdict.kept:
        say(f"champion stays version {verdict.before['champion']}: {verdict.kept}")


def _rollback(options: argparse.Namespace) -> int:
    from jobs.promote import rollback

    config = config_of(options)
    moves = rollback(_registry(options, config), options.voice, release=options.release, reason=options.reason or "")
    if options.json:
        say_json([vars(move) for move in moves], indent=1)
    else:
        for move in moves:
            say(f"{options.voice}: {move.alias} is version {move.after} again, it was {move.before}")
    return DONE


def _reproduce(options: argparse.Namespace) -> int:
    from jobs.progress import progress_for
    from jobs.reproduce import provenance, train_again
    from jobs.workspace import Workspace

    config = config_of(options)
    registry = _registry(options, config)
    workspace = Workspace.open(options.workspace)
    version = registry.version_of(options.voice, version=options.version, alias=options.alias)
    found = provenance(registry, version, options.voice, workspace, config)
    again: Again | None = None
    if options.again and found.can_run:
        with (
            progress_for(json_output=options.json).bar("train again") as bar,
            registry.files_of(version) as registered,
        ):
            again = train_again(
                found, registered, workspace, config, on_step=lambda step: bar.update(step.done, step.total, step.phase)
            )
    if options.json:
        needs = [{**vars(need), "met": need.met} for need in found.needs]
        trained = {"trained_again": again.weights, "distances": again.distances} if again else {"trained_again": None}
        say_json({**vars(found), "needs": needs, "can_run": found.can_run, **trained}, indent=1)
    else:
        _show_provenance(found, again)
    same = again is not None and again.confirms(found) if options.again else found.can_run
    return DONE if same else TROUBLED


def _show_provenance(found: "Provenance", again: "Again | None") -> None:
    say(f"{found.voice} version {found.version}, run {found.run_id}")
    rows = [
        [
            need.what,
            need.wanted[:32],
            (need.here or "none")[:32],
            "yes" if need.met else "no" if need.decides else "other",
        ]
        for need in found.needs
    ]
    say_table(("made of", "which", "here", "present"), rows)
    if found.on_gpu:
        say("It was trained on a GPU: a second training comes near, and not to the same bytes.")
    if found.packed:
        say("It shared its batches with other voices: a second training comes near, and not to the same bytes.")
    if again is not None:
        for half, digest in found.weights.items():
            same = again.weights[half] == digest
            result = "identical" if same else f"differs: {again.weights[half][:16]}, by {again.distances[half]:.2g}"
            say(f"{half} weights {digest[:16]}: {result}")
    elif found.can_run:
        say("All that decides is here: --run trains it again and compares the weights.")
    else:
        say("It cannot be trained again here.")


def _registry(options: argparse.Namespace, config: "JobConfig") -> "Registry":
    from jobs.tracking import Registry

    return Registry(tracking_uri_of(options, config), prefix=config.registry.prefix)


def _add_promote(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("voice", metavar="VOICE")
    parser.add_argument("--version", type=int, help="version of the voice [the challenger: the newest]")
    parser.add_argument("--force", action="store_true", help="even if it is worse than the champion")
    parser.add_argument("--reason", help="why it is forced")
    parser.add_argument("--dry-run", action="store_true", help="say what the gate says, and move nothing")
    add_tracking(parser)


def _add_rollback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("voice", metavar="VOICE")
    parser.add_argument("--release", help="only the champion of this release, such as v2Pro [that of all]")
    parser.add_argument("--reason", help="why")
    add_tracking(parser)


def _add_reproduce(parser: argparse.ArgumentParser) -> None:
    add_version(parser)
    # Under another name than its own: `run` is the verb's function.
    parser.add_argument("--run", dest="again", action="store_true", help="train it again, and compare the weights")


COMMANDS = {
    "promote": Command(
        run=_promote,
        says="a version → the champion of its voice, through the gate",
        example="gsv promote anna --workspace work --version 3",
        add_arguments=_add_promote,
    ),
    "reproduce": Command(
        run=_reproduce,
        says="what a version was made of, what of it is here, and its training once more",
        example="gsv reproduce --voice anna --version 3 --workspace work --run",
        add_arguments=_add_reproduce,
    ),
    "rollback": Command(
        run=_rollback,
        says="the champion of a voice → the one before",
        example="gsv rollback anna --workspace work",
        add_arguments=_add_rollback,
    ),
}
