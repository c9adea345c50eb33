"""Add an example to the help of each command that has none of its own."""

from __future__ import annotations

import typer

EXAMPLES = {
    "up": "tensordb up --db ./warehouse --port 27018",
    "down": "tensordb down --db ./warehouse",
    "uri": "tensordb uri --db ./warehouse",
    "status": "tensordb status --db ./warehouse --json",
    "ingest": "tensordb ingest photos/ --dataset photos --split train",
    "datasets": "tensordb datasets --json",
    "storage": "tensordb storage --project shoes",
    "find": "tensordb find data '{\"label\": 3}' --limit 5 --sort=-year",
    "export": 'tensordb export train/ \'{"split": "train"}\' --format webdataset --shard-bytes 500MB',
    "freeze": 'tensordb freeze \'{"dataset": "photos"}\' v1 --tag release',
    "frozen": "tensordb frozen --json",
    "diff": 'tensordb diff v1 \'{"dataset": "photos"}\'',
    "forget": 'tensordb forget --dataset photos --filter \'{"patient": "p-17"}\' --reason "GDPR 2026-114" --dry-run',
    "forgotten": "tensordb forgotten --json",
    "search": "tensordb search chest ct 2024 --kind data",
    "stream": "tensordb stream --dataset photos --shuffle --bench",
    "compact": "tensordb compact pong",
    "changes": "tensordb changes photos --limit 20",
    "history": "tensordb history 6565f0c2a5b8c1d2e3f40516 --json",
    "gc": "tensordb gc --dry-run",
    "fsck": "tensordb fsck --json",
    "backup create": "tensordb backup create /mnt/disk2/warehouse-2026-11-29",
    "backup restore": "tensordb backup restore /mnt/disk2/warehouse-2026-11-29 --db ./restored",
    "upgrade": "tensordb upgrade --db ./warehouse --mongod /opt/mongodb-7.0/bin/mongod",
    "ui": "tensordb ui --db ./warehouse --write",
    "top": "tensordb top --interval 1 --project shoes",
    "config set": "tensordb config set db mongodb://me@db1/lab?replicaSet=rs0",
    "config unset": "tensordb config unset blobs",
    "config path": "tensordb config path",
    "roots add": "tensordb roots add lab s3://lab/blobs",
    "roots list": "tensordb roots list --json",
    "roots remove": "tensordb roots remove lab",
    "params prune": "tensordb params prune --run cnn-1 --last 3 --best val_acc:2 --dry-run",
    "params import": "tensordb params import model.safetensors --run imported --step 30 --metric val_acc=0.9",
    "params export": 'tensordb params export \'{"run": "cnn-1"}\' best.safetensors --sort=-val_acc',
    "runs": 'tensordb runs \'{"status": "lost"}\' --sort=-best.val_acc',
    "import": "tensordb import mlflow ./mlruns --prefix old/",
    "logs tail": "tensordb logs tail cnn-1 --follow",
    "logs plot": 'tensordb logs plot loss --filter \'{"tags": "cnn"}\' --out loss.png',
    "logs export": 'tensordb logs export cnn.csv --filter \'{"run": "cnn-1"}\'',
}


def add_examples(app: typer.Typer, above: str = "") -> None:
    """Put the example of each command below its help."""
    for command in app.registered_commands:
        name = f"{above}{command.name or getattr(command.callback, '__name__', '')}"
        if name in EXAMPLES:
            command.epilog = f"Example: {EXAMPLES[name]}"
    for group in app.registered_groups:
        if group.typer_instance is not None:
            add_examples(group.typer_instance, f"{above}{group.name} ")
