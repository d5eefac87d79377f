"""MLflow's room: a mirror of each study, and the registry. The tracker is light; MLflow itself loads in the mirror's process."""

from hpsearch.tracking.process import masked
from hpsearch.tracking.reach import problem_of, unfinished
from hpsearch.tracking.stores import check_store, create_store, moved_artifacts, relocate_artifacts, store_file
from hpsearch.tracking.tracker import MlflowTracker, NoTracker, quiet_environment, tracking_uri

__all__ = [
    "MlflowTracker",
    "NoTracker",
    "check_store",
    "create_store",
    "masked",
    "moved_artifacts",
    "problem_of",
    "quiet_environment",
    "relocate_artifacts",
    "store_file",
    "tracking_uri",
    "unfinished",
]
