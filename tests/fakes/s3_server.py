"""An S3 server for tests: moto's, one request at a time, so that a conditional put is as atomic as on real storage.

python s3_server.py <port file>      serves until killed; every request is a line `METHOD path?query status` on standard output
"""

import os
import sys
from pathlib import Path
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server


class OneLine(WSGIRequestHandler):
    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        sys.stdout.write(f"{self.command} {self.path} {code}\n")
        sys.stdout.flush()


def main() -> None:
    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), request_handler=OneLine)
    beside = Path(sys.argv[1] + ".tmp")
    beside.write_text(str(server.server_port))
    os.replace(beside, sys.argv[1])
    server.serve_forever()


if __name__ == "__main__":
    main()
