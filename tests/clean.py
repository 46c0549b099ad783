"""Import this first: no test sees the user's environment, home folder or temporary files."""

import atexit
import os
import shutil
import site
import tempfile

# Where programs, packages and devices are; and what is meant for the tests.
KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "COLD", "WIKITEXT2",
        "COLAB_RELEASE_TAG")

if "PYTEST_XDIST_WORKER" not in os.environ:  # a worker has inherited all this
    tempfile.tempdir = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, tempfile.tempdir, ignore_errors=True)
    kept = {name: value for name, value in os.environ.items() if name in KEPT}
    kept |= {"HOME": tempfile.tempdir, "TMPDIR": tempfile.tempdir, "LANG": "C.UTF-8",
             "PYTHONUSERBASE": site.getuserbase(), "HYPOTHESIS_STORAGE_DIRECTORY": tempfile.tempdir}
    os.environ.clear()
    os.environ.update(kept)
os.environ["COLUMNS"] = "80"  # readline, which pytest loads, sets it to those of the terminal
