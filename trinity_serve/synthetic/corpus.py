"""A small made-up text to train a tokenizer on, the same on every machine."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator

_STEM_TEXT = """
accept account act add address agree allow amount answer appear apple apply argue arrive art ask
attempt autumn balance band bark base basket bear beat bed begin bell bench bird blanket blend block
blue board boat body bone book border borrow bottle bottom bowl box branch brave bread break breath
brick bridge bright bring broad brook brother brown brush build burn butter button call calm camera
camp candle captain card care carry cart castle catch cause center chain chair chalk chance change
chapter charge cheese cherry chest child choose circle city claim class clay clean clear cliff climb
clock cloth cloud coast coat coffee coin cold collect color column comfort common company compare
complete compute concern connect consider contain content continue control cook copper copy corn
corner cotton count country courage course cousin cover craft cream create cross crowd crown crystal
culture curious current curtain custom cycle dance danger dark daughter decide deep degree deliver
depend describe desert design detail develop device differ dinner direct discover distance divide
doctor door double doubt dragon draw dream dress drift drink drive drop dry dust early earth east
easy edge effect effort eight electric element empty engine enjoy enter equal escape evening event
exact example except exchange expert explain express eye face factor fair family famous farm father
favor feather feed feel fence field fight figure fill final find finger finish fire fish flag flame
flat float floor flow flower fold follow foot force forest forget forgive form forward found frame
free fresh friend front frost fruit full future gain game garden gather gentle gift glad glass glove
gold good grain grand grass gray great green ground group grow guard guess guest guide habit half
hall hammer hand happen harbor hard harvest hat head health hear heart heat heavy height help hill
history hold hollow home honest honey hope horse hour house human hundred hunt hurry idea image
improve inch include increase inform iron island join journey judge jump just keep kettle key kind
king kitchen knife knock know ladder lake lamp land language large laugh layer lead leaf learn least
leave lemon letter level library light limit line lion list listen little live local lock long look
lose loud lucky machine magic maple march mark market marvel master match matter meadow mean measure
meet member memory mention message metal method middle might mile milk mill mind minute mirror mix
model modern moment money month moon morning mother motion mountain mouse move music name narrow
nation nature near necessary needle neighbor nest never night noble noise north note notice number
object observe ocean offer office old olive open opinion orange orbit order organ other owner page
paint pair palace paper parcel part party pass path patient pattern peace pencil people pepper
perfect period person phrase picture piece pilot place plain plan planet plant plate play please
pocket poem point polish pond poor port possible pour power practice present press pretty price
print problem produce promise proper protect proud prove provide public pull pure purple purpose
push question quick quiet rabbit race rain raise range rapid rather reach read ready reason receive
record red refer region remain remember repair repeat report require rescue rest result return rice
rich ride right ring rise river road rock roll roof room root rope rose rough round route row royal
rule run safe sail salt same sand save scale school science season second secret seed seem select
send sense separate serve settle seven shade shape share sharp sheet shell shelter shine ship shirt
shoe shop shore short shoulder shout show side sign silent silver similar simple sing single sister
sister skill skin sky sleep slice slide slow small smile smoke smooth snow social soft soil soldier
solid solve song soon sort sound soup source south space speak special speed spell spend spirit
spoon sport spread spring square stable stage stair stand star start state station stay steam steel
step stick still stone stop store storm story straight strange stream street strength stretch string
strong student study subject sudden sugar suggest summer sun supper supply support suppose sure
surface surprise sweet swim switch symbol system table tail take talk tall taste teach team tell
temple tender tent term test thank theater thick thin thing think third thread three throw thunder
ticket tide tiger timber time tiny title today token tomorrow tone tool top total touch tower town
trace track trade train travel treasure tree triangle trick trip trouble true trust try tunnel turn
twelve twenty type uncle under unit use usual valley value vary velvet verb view village violet
visit voice volume wait walk wall wander warm wash waste watch water wave weather week weigh west
wheat wheel whisper white whole wide wild win wind window wing winter wire wise wish wolf wonder
wood wool word work world worth write yard year yellow yesterday young zero
"""

_ENDINGS = ("", "s", "ed", "ing", "er", "ly", "ness", "ful", "less", "able", "ment", "ion")
_JOIN_TEXT = (
    "and the of to in a is that for it as with was on be by not this are at from or had an they "
    "which one you were all her she there would their we him been has when who will no more if out "
    "so what up said its about than into them can only some could these two may then do first any"
)
Draw = Callable[[], float]

_MARKS = (".", ".", ".", ",", ",", "?", "!", ";", ":")

_LITERAL = """
def main(values: list[int]) -> int:
    total = 0
    for value in values:
        if value % 2 == 0 and value != 10:
            total += value * 3
    return total

class Counter:
    def __init__(self, start=0):
        self.count = start

<tool_call>
{"name": "get_weather", "arguments": {"city": "Vienna", "unit": "celsius"}}
</tool_call>
<tool_response>
{"temperature": 21.5, "condition": "sunny"}
</tool_response>
<think>
Let me think about it step by step.
</think>
# Tools
You are a helpful assistant. Hello, how are you? I'm fine, thanks; it's what we've done, don't you?
https://www.example.com/path?query=1&page=2 user@example.org (2024-05-17, 12:30) 3.14159 1,000,000
Ein schöner Tag für Bäume, Flüsse und Straßen. Où est la forêt? Él niño comió aquí mañana.
Быстрая лиса прыгает через ленивую собаку. Γειά σου κόσμε. 你好世界,今天天气很好。 こんにちは世界。
안녕하세요 세계 สวัสดีชาวโลก مرحبا بالعالم 😀 🚀 🎉 ❤️ → ← ≤ ≥ × ÷ € £ ½ — … “quote” ‘single’
"""


def corpus(num_sentences: int = 12_000) -> Iterator[str]:
    """Yield lines of text: sentences of made-up English, with code, JSON and other scripts between.

    `random.Random` promises the same floats for a seed in every Python version; nothing else of it
    is used, and only products of them, which are the same on every machine.
    """
    draw = random.Random(2026).random
    stems, joins = _STEM_TEXT.split(), _JOIN_TEXT.split()
    for number in range(num_sentences):
        if number % 100 == 0:
            yield _LITERAL
        words = _words(draw, stems, joins)
        yield (_json_line if number % 17 == 0 else _sentence)(draw, words) + "\n"


def _words(draw: Draw, stems: list[str], joins: list[str]) -> list[str]:
    """Return joining word, inflected stem, joining word, …; early entries of each more often."""
    words = []
    for _ in range(4 + int(draw() * 12)):
        words.append(joins[int(len(joins) * draw() * draw())])
        stem = stems[int(len(stems) * draw())]
        words.append(stem + _ENDINGS[int(len(_ENDINGS) * draw() * draw() * draw())])
    return words


def _sentence(draw: Draw, words: list[str]) -> str:
    return " ".join(words).capitalize() + _MARKS[int(len(_MARKS) * draw())]


def _json_line(draw: Draw, words: list[str]) -> str:
    return json.dumps({words[1]: int(draw() * 10_000), words[3]: [words[5], draw() > 0.5]})
