"""Import this first. It hides the user's environment, home folder and temporary files."""

import atexit
import os
import shutil
import site
import tempfile

# The places of programs, packages and devices; and the options of the tests.
KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "COLD", "WIKITEXT2",
        "COLAB_RELEASE_TAG")

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit it
    tempfile.tempdir = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, tempfile.tempdir, ignore_errors=True)
    kept = {name: value for name, value in os.environ.items() if name in KEPT}
    kept |= {"HOME": tempfile.tempdir, "TMPDIR": tempfile.tempdir, "LANG": "C.UTF-8",
             "PYTHONUSERBASE": site.getuserbase(), "HYPOTHESIS_STORAGE_DIRECTORY": tempfile.tempdir}
    os.environ.clear()
    os.environ.update(kept)
os.environ["COLUMNS"] = "80"  # pytest loads readline, which sets it
