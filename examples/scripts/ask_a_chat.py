"""Ask an exported chat: who said it and when; whose messages count can be chosen.

python examples/scripts/ask_a_chat.py                    # examples/chat.txt
python examples/scripts/ask_a_chat.py chat.txt "Who keeps the key?" Ann
"""

import sys
from pathlib import Path

from indexmem_cli.config import ReadConfig
from indexmem_cli.documents import open_sources
from indexmem_cli.session import Memory

EXAMPLES = Path(__file__).parents[1]


def main(chat: str, question: str, *authors: str) -> None:
    """Print the answer with the messages it comes from."""
    read = ReadConfig(authors=authors)
    answer = Memory(open_sources([chat], read), read_config=read).ask(question)
    print(answer)
    for source in answer.sources:
        print(f"  {source.time} {source.author}: {source.quote}")
    counted = answer.coverage
    print(f"{counted.messages_read} messages read, {counted.messages_not_selected} not selected")


if __name__ == "__main__":
    main(
        *(
            sys.argv[1:]
            or (str(EXAMPLES / "chat.txt"), "What was the reference number of the form?")
        )
    )
