#!/usr/bin/env bash
# Files and directories that one mount removes or replaces while another one knows them, or has them open.
. "$(dirname "$0")/lib.sh"
need_mount
need_tool python3
mkdir "$work/mnt"
up --capacity 1GiB --mount "$work/mnt"
second_mount
timeout 300 python3 "$(dirname "$0")/stale.py" "$work/mnt" "$work/two"
second_down
down
fsck
