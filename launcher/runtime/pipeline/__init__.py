"""Pipeline parallelism: links between stages and the interpreter of schedules."""
