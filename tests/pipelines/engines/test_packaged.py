import pytest

from pipelines.engines.packaged import package_version, packaged_file


def test_a_file_of_a_package_is_found_and_what_is_missing_is_named():
    assert packaged_file("faster_whisper", "assets/silero_vad_v6.onnx").is_file()
    with pytest.raises(ValueError, match="pip install no-such-package"):
        packaged_file("no_such_package", "model.onnx")
    with pytest.raises(ValueError, match=r"faster_whisper .*has no model\.onnx"):
        packaged_file("faster_whisper", "model.onnx")
    assert package_version("no-such-package") == "unknown"
