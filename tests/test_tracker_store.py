"""An MLflow store may come with a stranger's run folder: what it says is not where files are written."""

import types

import pytest

from fitkit.parts.trackers import MLflow


@pytest.mark.parametrize("place", ["{0}/../../../stolen", "{0}/../{1}/artifacts", "{0}/{1}/artifacts/../../x"])
def test_a_store_that_came_with_a_run_sends_its_files_nowhere_else(place, tmp_path):
    (tmp_path / "env.json").write_text("{}")
    sent, tracker, run_id = [], MLflow(), "0" * 32
    tracker.artifacts, tracker.run_id = (tmp_path / "mlflow" / "artifacts").as_uri(), run_id
    info = types.SimpleNamespace(artifact_uri=place.format(tracker.artifacts, run_id))
    tracker.client = types.SimpleNamespace(
        get_run=lambda id: types.SimpleNamespace(info=info), log_artifact=lambda *words: sent.append(words)
    )
    with pytest.raises(OSError, match="keeps files in"):
        tracker._send_files(types.SimpleNamespace(out=tmp_path))
    info.artifact_uri = f"{tracker.artifacts}/{run_id}/artifacts"
    tracker._send_files(types.SimpleNamespace(out=tmp_path))
    assert sent == [(run_id, str(tmp_path / "env.json"))]
