import argparse
import os
import sys
from pathlib import Path

import pytest

from jobs.cli import _parser
from jobs.command import config_of, core_log


def test_what_ray_prints_goes_into_a_file_and_progress_is_still_seen(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with core_log(tmp_path, argparse.Namespace(verbose=False)):
        print("(raylet) a worker died")
        os.write(2, b"from the core\n")
        sys.stderr.write("progress\n")
    print('{"voices": []}')
    out, err = capfd.readouterr()
    assert out == '{"voices": []}\n'
    assert "from the core" not in err
    log = (tmp_path / "ray-core.log").read_text(encoding="utf-8")
    assert "(raylet) a worker died" in log
    assert "from the core" in log


def test_who_wants_to_see_everything_sees_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with core_log(tmp_path, argparse.Namespace(verbose=True)):
        print("(raylet) a worker died")
    assert "(raylet) a worker died" in capfd.readouterr().out
    assert not (tmp_path / "ray-core.log").exists()


def test_options_with_a_name_of_their_own_reach_the_settings() -> None:
    options = _parser().parse_args(["prepare", "r", "--corpus", "s3://b/c", "--corrections", "c.tsv", "--wait", "5"])
    config = config_of(options)
    assert (config.corpus_uri, config.corrections, options.wait) == ("s3://b/c", "c.tsv", 5.0)
    assert config_of(_parser().parse_args(["verify"])).corpus_uri is None
