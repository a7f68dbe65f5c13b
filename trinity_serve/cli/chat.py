"""`trinity chat`: a conversation in the terminal, the answer shown as it comes."""

from __future__ import annotations

import click

from trinity_serve.cli.endpoint import Endpoint, EndpointError, Message

HELP = "/system TEXT sets the system prompt and starts over, /reset starts over, /quit ends."


class Conversation:
    """The turns so far, and what a line typed by the user does to them."""

    def __init__(self, endpoint: Endpoint, model: str, options: dict[str, float]) -> None:
        self.endpoint, self.model, self.options = endpoint, model, options
        self.messages: list[Message] = []

    def reset(self, system: str | None = None) -> None:
        """Forget all turns; keep the system prompt, or take a new one ("" for none)."""
        if system is not None:
            self.messages = [Message(role="system", content=system)] if system else []
        self.messages = [turn for turn in self.messages if turn["role"] == "system"]

    def ask(self, text: str) -> None:
        """Send a turn and print the answer. Ctrl-C stops the answer and keeps what came.

        A refused turn is printed and forgotten, so that the conversation can go on.
        """
        self.messages.append(Message(role="user", content=text))
        pieces: list[str] = []
        stream = self.endpoint.stream_chat(self.model, self.messages, self.options)
        try:
            for piece in stream:
                pieces.append(piece)
                click.echo(piece, nl=False)
            click.echo()
        except KeyboardInterrupt:
            stream.close()
            click.echo(" [stopped]")
        except EndpointError as error:
            click.echo(f"trinity: {error.format_message()}", err=True)
            self.messages.pop()
            return
        self.messages.append(Message(role="assistant", content="".join(pieces)))

    def handle(self, line: str) -> bool:
        """Do what one typed line says; return whether to go on."""
        word, _, rest = line.partition(" ")
        match word:
            case "":
                pass
            case "/quit" | "/exit":
                return False
            case "/reset":
                self.reset()
            case "/system":
                self.reset(rest.strip())
            case _ if word.startswith("/"):
                click.echo(HELP)
            case _:
                self.ask(line)
        return True


@click.command("chat")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The endpoint.")
@click.option("--model", help="Model to ask.  [default: the first one served]")
@click.option("--system", default="", help="System prompt.")
@click.option("--temperature", type=float, help="[default: the server's]")
@click.option(
    "--api-key", envvar="TRINITY_API_KEY", show_envvar=True, help="Where keys are asked for."
)
@click.option("--max-tokens", type=int, help="Longest answer.  [default: the server's]")
def command(
    url: str,
    model: str | None,
    system: str,
    temperature: float | None,
    api_key: str | None,
    max_tokens: int | None,
) -> None:
    """Talk to a running endpoint. /reset, /system TEXT, /quit; Ctrl-C stops an answer."""
    endpoint = Endpoint(url, api_key or "")
    given = {"temperature": temperature, "max_tokens": max_tokens}
    options = {key: value for key, value in given.items() if value is not None}
    conversation = Conversation(endpoint, model or endpoint.first_model(), options)
    conversation.reset(system)
    click.echo(f"{conversation.model} at {endpoint.base_url}. {HELP}")
    going_on = True
    while going_on:
        try:
            line = click.prompt("you", prompt_suffix="> ", default="", show_default=False)
        except click.Abort:
            click.echo()
            return
        going_on = conversation.handle(line.strip())
