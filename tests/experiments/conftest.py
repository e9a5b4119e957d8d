"""Calls of the training program on tiny files."""

import pytest
from tiny_files import private_cache, tiny_flags, tiny_folder, tiny_rows

from fedjax_post.experiments import train


@pytest.fixture
def call(tiny_flags, tmp_path):
    """Calls the program on the tiny files, into a folder of the test's."""

    def call(*given, into="run"):
        return train.main(["train", *tiny_flags, f"--output_dir={tmp_path / into}", *given])

    return call


@pytest.fixture(scope="session")
def finished(tiny_flags, tmp_path_factory):
    """The folder of a finished run; copy it before continuing it."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert train.main(["train", *tiny_flags, f"--output_dir={folder}"]) == 0
    return folder
