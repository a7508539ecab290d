"""The daemon on the device: predicts, learns inside a memory limit, and syncs with the server.

Processes, and the module each of them starts in::

    supervisor   `supervisor.py`   asyncio, MQTT, SQLite; owns the sockets; imports neither numpy nor a runtime
    ├── worker   `worker.py`       predictions and feedback over HTTP; started by the first connection
    ├── trainer  `trainer.py`      one fine-tuning run under a hard memory limit
    ├── planner  `planner.py`      plans training, so that planning never counts against the trainer's limit
    ├── health   `health.py`       tries a downloaded release before it is switched to
    └── verifier `verifier.py`     checks a signature (the cryptography library would stay resident in the supervisor)

This package imports nothing by itself: every process pays only for what it uses.
"""
