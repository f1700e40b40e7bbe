"""What a pair is measured by, as people meet it: names, order and form of the numbers in `scores.json`."""

from pipelines.report import wording

_MORE = {
    "mel_cepstral_distance": (
        wording.Measure(key="pitch_error_cents", name="Pitch error, cents", better="lower is better", form=".0f"),
        wording.Measure(key="voicing_error", name="Voicing error", better="lower is better", form="share"),
    ),
    "duration_ratio": (
        wording.Measure(key="fault_share", name="With a fault", better="lower is better", form="share"),
    ),
}
"""Measures that the corpus report has no room for, each behind the one it is shown after."""
MEASURES = tuple(
    entry
    # What pairs are ranked by stands first.
    for measure in sorted(wording.MEASURES, key=lambda measure: measure.key != "score")
    for entry in (measure, *_MORE.get(measure.key, ()))
)
