"""What a cluster job needs beside submitit: profiles, the stages it can run, records, logs, arrays."""
