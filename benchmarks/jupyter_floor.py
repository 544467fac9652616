"""The floor for run_code: `jupyter_client` alone, in the same template, without any sandbox or server.

Runs inside the template's root (chroot) with the template's own Python. Each line read from stdin is one cell to
execute; each answer is one line: the milliseconds from sending the cell to the kernel being idle again.
"""

import sys
import time

from jupyter_client.manager import start_new_kernel


def main() -> None:
    manager, client = start_new_kernel(kernel_name="python3")
    print("ready", flush=True)
    try:
        for line in sys.stdin:
            began = time.perf_counter()
            message_id = client.execute(line.rstrip("\n"))
            idle = False
            while not idle:
                message = client.get_iopub_msg(timeout=60)
                if message["parent_header"].get("msg_id") == message_id:
                    idle = message["msg_type"] == "status" and message["content"]["execution_state"] == "idle"
            print((time.perf_counter() - began) * 1000, flush=True)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


if __name__ == "__main__":
    main()
