"""A whole folder of photos into one file, and searches in it: the parts of scripts.index_photos and scripts.search."""

import importlib.util

if importlib.util.find_spec("pyarrow") is None:
    raise ModuleNotFoundError("Indexes are Parquet files, which need pyarrow: pip install 'facet-ml[bulk]'")
