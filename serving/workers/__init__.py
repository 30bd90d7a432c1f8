"""The service as several processes over one port: a supervisor, workers that answer, and one that writes Parquet."""
