"""A disk that fails or is slow, for the ranks of a job: faults/fault_shim.c."""
import muster_program as mp


def shim(folder, kind, **settings):
    """Environment in which operations at or below the folder fail."""
    return {"LD_PRELOAD": mp.built("tests/libfault_shim.so"), "MUSTER_FAULT_FOLDER": str(folder), "MUSTER_FAULT_KIND": kind,
            **{f"MUSTER_FAULT_{name.upper()}": str(value) for name, value in settings.items()}}
