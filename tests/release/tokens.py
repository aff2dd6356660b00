"""GitHub's endpoint for ID tokens and OpenAI's for access tokens, in plain HTTP on a free port of 127.0.0.1,
which is printed. GitHub's wants REQUEST_TOKEN; the access token is KEY. Both are in the environment."""

import http.server
import json
import os

ID_TOKEN = "eyId.e30.c2ln"


class Handler(http.server.BaseHTTPRequestHandler):
    def respond(self, status, body):
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        fine = self.headers["Authorization"] == "bearer " + os.environ["REQUEST_TOKEN"]
        if not fine or "audience=https%3A%2F%2Fapi.openai.com%2Fv1" not in self.path:
            return self.respond(401, {"error": "invalid_request"})
        self.respond(200, {"count": 1, "value": ID_TOKEN})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        want = {
            "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "subject_token": ID_TOKEN,
            "identity_provider_id": "idp_1",
            "service_account_id": "sa_2",
        }
        if body != want:
            return self.respond(400, {"error": "invalid_grant"})
        self.respond(
            200,
            {
                "access_token": os.environ["KEY"],
                "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
                "token_type": "Bearer",
                "expires_in": 900,
            },
        )

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
