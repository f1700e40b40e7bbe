"""A version tried in a process of its own: loaded as anybody's MLflow would load it, and made to say its example.

Run as a program, in a Python that has imported nothing of ours, so that the gsv_core that speaks is the version's own.
The store comes in the environment (MLFLOW_TRACKING_URI), the version as the only argument; one line of JSON goes out.
"""

import io
import json
import sys
import wave

import numpy as np


def try_version(uri: str) -> dict[str, object]:
    """Load the version that MLflow knows as `uri`; what it said, as numbers: seconds, rate, and root mean square."""
    import mlflow
    from mlflow.models import Model

    model = mlflow.pyfunc.load_model(uri)
    example = Model.load(uri).load_input_example()
    spoken = model.predict(example)
    with wave.open(io.BytesIO(bytes(spoken["audio"][0]))) as file:
        rate_hz = file.getframerate()
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float64) / 2**15
    level = float(np.sqrt(np.mean(samples**2))) if len(samples) else 0.0
    return {
        "seconds": len(samples) / rate_hz,
        "rate_hz": rate_hz,
        "level": level,
        "code": str(sys.modules["gsv_core"].__file__),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(try_version(sys.argv[1])) + "\n")
