"""What the fleet reports to: ingest, aggregate, distill, evaluate, release, observe.

The parts, each in a file: `app` (one process: MQTT, database, web), `ingest` and `intake` (messages to rows and
receipts), `jobs` and `merge` (deltas to a model, in a child process), `aggregate`, `distill`, `choose` (mathematics),
`signing` and `publish` (rows to signed releases on the broker), `service` (what people ask), `web` (the page and API).
"""
