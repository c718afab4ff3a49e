"""Where each answer stands in a rendering: from what the model would be asked with to its end-of-turn token.

Nothing is known of the template but what it writes. Marks in the conversation's own texts (marks.py) tell which
stretch of the rendering each turn fills. What stands between two stretches is the template's: the end of one turn, the
header of the next, and what belongs to an answer, such as the syntax of a call. It is cut by comparing it with
renderings of the conversation up to there, with and without the prompt for an answer, stretch by stretch, because a
template may write earlier turns otherwise once later ones follow.

All positions are characters of the text whose special tokens have private names (vocabulary.py).
"""

from __future__ import annotations

import contextlib
import functools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from influray.data.habits import EXCHANGE, Habits, common, shared, squeezed, without_thought
from influray.data.marks import CALLS, Place, find_places, mark, said, says_something, settle, unmarked, with_marks
from influray.data.records import BadRow, Record, Turn, is_blank
from influray.data.rendering import ChatTemplate, Conversation
from influray.data.vocabulary import PRIVATE, PrivateVocabulary
from influray.protocols import DataError

MAX_RENDERINGS = 400  # of one conversation: a stretch that needs its own takes one or two


@dataclass(frozen=True, slots=True)
class Answer:
    """A stretch to train: what an assistant turn writes, without its end-of-turn token up to `stop`, with it to `end`.

    A turn has one, or those that its template marks as generated.
    """

    turn: int
    start: int
    stop: int
    end: int


@dataclass(frozen=True, slots=True)
class AnsweredText:
    """A conversation's text and its answers in order.

    `gone` are the assistant turns of which the template leaves nothing; `cut` says in words what it leaves out or
    rewrites of the others, and of the tools.
    """

    text: str
    answers: tuple[Answer, ...]
    gone: tuple[int, ...]
    cut: tuple[str, ...]


class AnswerReader:
    """Reads conversations as `template` writes them, by the special tokens of `vocabulary`.

    Raises:
        DataError: in a plain exchange, the text up to the question depends on the answer.
    """

    def __init__(self, template: ChatTemplate, vocabulary: PrivateVocabulary) -> None:
        self.template = template
        self.vocabulary = vocabulary
        self.habits = Habits()
        self.habits = _habits(self)

    def read(self, conversation: Conversation, real: str | None = None) -> AnsweredText:
        """Return the reading of a conversation. `real` is its rendering, where it is known.

        Raises:
            BadRow: the template refuses it, leaves out a turn, or leaves nothing of an answer.
        """
        real = self.template.render(conversation) if real is None else real
        return _Stretches(self, conversation, real).reading()


class _Stretches:
    """One conversation on its way to a reading."""

    def __init__(self, reader: AnswerReader, conversation: Conversation, real: str) -> None:
        self.reader, self.conversation = reader, conversation
        self.messages = conversation.messages
        self.places = find_places(self.messages, reader.template.literals, reader.vocabulary.first_special)
        self._seen = ""
        self._real = real
        self._renderings = 0
        self.used = settle(range(len(self.places)), self._fits)
        self.text, marks = self._translated(self._seen if self.used else real)
        # A later turn may say an earlier one's words again, such as the name of what was called.
        first = {number: position for position, number in reversed(marks)}
        self.at = [(position, number) for position, number in marks if first[number] == position]
        self.of_turn: dict[int, list[int]] = {}
        for index, (_, number) in enumerate(self.at):
            self.of_turn.setdefault(self.places[number].turn, []).append(index)

    def reading(self) -> AnsweredText:
        """Return what `AnswerReader.read` does."""
        self._refuse_left_out()
        answers, gone, cut = self.answers()
        generated = self._generated()
        if generated is not None:
            answers = self._believed(answers, generated)
        return AnsweredText(self.text, tuple(answers), tuple(gone), (*cut, *self._cut_tools()))

    def answers(self) -> tuple[list[Answer], list[int], list[str]]:
        """Return the answers by the text alone, the turns that are gone, and what is cut."""
        answers, gone, cut = [], [], []
        unwritten = {self.places[number].turn for number in self.used} - self.of_turn.keys()
        for turn, message in enumerate(self.messages):
            if message["role"] != "assistant" or not says_something(message):
                continue
            found = self._answer(turn)
            shown = self.reader.vocabulary.plain(self.text[found.start : found.stop])
            if is_blank(shown) or turn in unwritten:
                gone.append(turn)
            else:
                answers.append(found)
                cut += self._cut(turn, squeezed(shown))
        return answers, gone, cut

    def _generated(self) -> list[tuple[int, int]] | None:
        """Return the stretches that the template marks as generated, None where it has no such marks."""
        spans = self.reader.template.generated(self._with_marks(self.conversation))
        if spans is None:
            return None
        # Their ends go through the translation as marks do.
        first = len(self.places)
        ends = sorted((at, first + 2 * k + side) for k, span in enumerate(spans) for side, at in enumerate(span))
        pieces, last = [], 0
        for at, number in ends:
            pieces += (self._seen[last:at], mark(number))
            last = at
        text, found = self._translated("".join([*pieces, self._seen[last:]]))
        if text != self.text:
            raise BadRow("a {% generation %} block of the chat template begins or ends inside a special token")
        moved = {number: position for position, number in found if number >= first}
        return [(moved[first + 2 * k], moved[first + 2 * k + 1]) for k in range(len(spans))]

    def _believed(self, answers: list[Answer], generated: list[tuple[int, int]]) -> list[Answer]:
        """Return the generated stretches as answers, each of the turn that it overlaps, else of the one it follows."""
        positions = [position for position, _ in self.at]
        inside = [index for span in generated for index in range(*(bisect_right(positions, end) for end in span))]
        for turn in sorted({self._place(index).turn for index in inside}):
            role = self.messages[turn]["role"]
            if role != "assistant":
                raise BadRow(
                    f"the chat template marks turn {turn + 1} ({role}) as generated; give model.chat_template a file "
                    "whose {% generation %} blocks hold answers alone"
                )
        found, last = [], 0
        for start, end in generated:
            over = [answer for answer in answers if answer.start < end and start < answer.end]
            if not over:  # such as an end of text after the last turn
                before = [answer for answer in answers if answer.end <= start][-1:]
                over = [answer for answer in before if not self.text[max(answer.end, last) : start].strip()]
            last = end
            for k, answer in enumerate(over):
                begin = start if k == 0 else answer.start
                until = end if k == len(over) - 1 else over[k + 1].start
                found.append(Answer(answer.turn, begin, min(max(begin, answer.stop), until), until))
        return found

    def question(self, turn: int) -> tuple[int, list[str]]:
        """Return where the question before an answer ends, and what the text before the answer has after it.

        That is without and with the prompt for an answer; one is missing where the text up to there is another than
        in the whole conversation.
        """
        before = self.of_turn[turn - 1][-1]
        base = self._stop(before, len(self.text))
        forms = [text[0] for prompt in (False, True) if (text := self._until(turn, prompt)) is not None]
        return base, [text[base:] for text in forms if text.startswith(self.text[:base])]

    def first_word(self, turn: int) -> int:
        """Return where the first text of a turn begins."""
        index = self.of_turn[turn][0]
        core, words = self._begin(index, 0)
        return core if words is None else words

    def _fits(self, numbers: Sequence[int]) -> bool:
        messages = with_marks(self.messages, self.places, numbers)
        marked = Conversation(messages, self.conversation.tools, self.conversation.options)
        try:
            text = self.reader.template.render(marked)
        except BadRow:
            return False
        if unmarked(text)[0] != self._real:
            return False
        self._seen = text
        return True

    def _with_marks(self, conversation: Conversation) -> Conversation:
        turns = len(conversation.messages)
        used = [number for number in self.used if self.places[number].turn < turns]
        messages = with_marks(conversation.messages, self.places, used)
        return Conversation(messages, conversation.tools, conversation.options)

    def _translated(self, marked: str) -> tuple[str, list[tuple[int, int]]]:
        return unmarked(self.reader.vocabulary.translate(marked))

    def _until(self, turn: int, prompt: bool) -> tuple[str, list[tuple[int, int]]] | None:
        """Return the text before a turn and the marks in it; None where the template refuses it."""
        self._renderings += 1
        if self._renderings > MAX_RENDERINGS:
            raise BadRow(f"the answers are found only by more than {MAX_RENDERINGS} renderings of this conversation")
        with contextlib.suppress(BadRow):
            before = self._with_marks(self.conversation.until(turn))
            return self._translated(self.reader.template.render(before, prompt))
        return None

    def _refuse_left_out(self) -> None:
        markable = {self.places[number].turn for number in self.used}
        for turn in sorted(markable - self.of_turn.keys()):
            role = self.messages[turn]["role"]
            if role != "assistant":
                raise BadRow(
                    f"the chat template leaves out turn {turn + 1} ({role}); give model.chat_template a file that "
                    "writes it"
                )

    def _answer(self, turn: int) -> Answer:
        mine = self.of_turn.get(turn, [])
        before, after = self._neighbours(turn, mine)
        floor = 0 if before is None else self.at[before][0]
        core, words = self._begin(mine[0], floor) if mine else (None, None)
        limit = len(self.text)
        if after is not None:
            begun, its = self._begin(after, self.at[mine[-1]][0] if mine else floor)
            limit = begun if its is None else its
        base = 0 if before is None else self._stop(before, limit if core is None else core)
        first = limit if core is None else core if words is None else words
        start = self._header(turn, before, base, max(first, base))
        if mine:
            stop, anchor = self._stop(mine[-1], limit), self.at[mine[-1]]
        else:
            stop, anchor = start, None if before is None else self.at[before]
        stop, end = self._closing(turn, stop, limit, anchor)
        return Answer(turn, start, stop, max(stop, end))

    def _neighbours(self, turn: int, mine: list[int]) -> tuple[int | None, int | None]:
        """Return the marks of other turns that stand next before and after those of a turn."""
        if mine:
            first, last = mine[0], mine[-1]
            return first - 1 if first else None, last + 1 if last + 1 < len(self.at) else None
        earlier = [indices[-1] for other, indices in self.of_turn.items() if other < turn]
        later = [indices[0] for other, indices in self.of_turn.items() if other > turn]
        return max(earlier, default=None), min(later, default=None)

    def _place(self, index: int) -> Place:
        return self.places[self.at[index][1]]

    def _begin(self, index: int, floor: int) -> tuple[int, int | None]:
        """Return where the word of a mark begins, and where its whole text does if it stands there to the letter."""
        place, position = self._place(index), self.at[index][0]
        text = place.text[: place.offset]
        blank = len(text) - len(text.lstrip())
        length = place.offset - blank
        whole = position - length >= floor and self.text.startswith(text[blank:], position - length)
        return position - place.word, position - length if whole else None

    def _stop(self, index: int, limit: int) -> int:
        """Return where the text of a mark ends, as far as it stands there to the letter."""
        place, position = self._place(index), self.at[index][0]
        rest = place.text[place.offset :]
        for tail in (rest, rest.rstrip()):
            if position + len(tail) <= limit and self.text.startswith(tail, position):
                return position + len(tail)
        return position

    def _header(self, turn: int, before: int | None, base: int, core: int) -> int:
        """Return where the header of a turn ends, between what stands before it and its own first word."""
        habits = self.reader.habits
        gap = self.text[base:core]
        earlier = -1 if before is None else self._place(before).turn
        if habits.header:
            silent = [k for k in range(earlier + 1, turn) if self.messages[k]["role"] == "assistant"]
            at = -1
            for _ in range(len(silent) + 1):
                found = gap.find(habits.header, at + 1)
                if found < 0:
                    break
                at = found
            if at >= 0:
                return base + at + len(habits.header)
        else:
            asked = earlier == turn - 1 >= 0 and self.messages[earlier]["role"] == "user"
            if asked and habits.after_user and gap.startswith(habits.after_user):
                return base + len(habits.after_user)
            # A question of white space has no mark: what follows it is told by the special token that it holds.
            if not asked and turn and self.messages[turn - 1]["role"] == "user" and PRIVATE.search(habits.after_user):
                at = gap.rfind(habits.after_user)
                if at >= 0:
                    return base + at + len(habits.after_user)
        for prompt in (True, False):
            found = self._following(turn, prompt, base, None if before is None else self.at[before])
            if found is not None:
                length = common(gap, found)
                rest = gap[length:]
                return base + (len(gap) if not habits.prompts and not rest.strip() else length)
        return core

    def _following(self, turn: int, prompt: bool, position: int, anchor: tuple[int, int] | None) -> str | None:
        """Return what the text before a turn has after a position of this one, which is moved as a mark is."""
        text = self._until(turn, prompt)
        if text is None or anchor is None:
            return text and text[0][position:]
        found = [at for at, its in text[1] if its == anchor[1]]
        return text[0][found[-1] + position - anchor[0] :] if found else None

    def _closing(self, turn: int, stop: int, limit: int, anchor: tuple[int, int] | None) -> tuple[int, int]:
        """Return where a turn ends without its end-of-turn token, and with it."""
        closing = self.text[stop:limit]
        end = self.reader.habits.end
        at = closing.find(end) if end else -1
        if at >= 0 and not PRIVATE.search(closing, 0, at):
            return stop + len(closing[:at].rstrip()), stop + at + len(end)
        alone = self._following(turn + 1, False, stop, anchor)
        shared = closing[: len(closing) if alone is None else common(closing, alone)]
        specials = list(PRIVATE.finditer(shared))
        if not specials:  # a last turn may end otherwise than one that is followed, as gpt-oss has it
            asked = self._following(turn + 1, True, stop, anchor) or ""
            header = self.reader.habits.header
            asked = asked.partition(header)[0] if header else asked
            specials = list(PRIVATE.finditer(closing[: common(closing, asked)]))[:1]
        if not specials:
            shown = stop + len(shared.rstrip())
            return shown, shown
        return stop + len(closing[: specials[-1].start()].rstrip()), stop + specials[-1].end()

    def _cut(self, turn: int, shown: str) -> list[str]:
        """Return what of an answer is not in the text, or not to the letter, white space apart."""
        standing = {self.at[index][1] for index in self.of_turn.get(turn, [])}
        mine = [number for number in self.used if self.places[number].turn == turn]
        lost = {str(self.places[number].path[0]) for number in mine if number not in standing}
        for path, text in said(self.messages[turn]):
            if path[0] not in CALLS and squeezed(text) not in shown:
                lost.add(str(path[0]))
        return [f"{key} of turn {turn + 1}" for key in sorted(lost)]

    def _cut_tools(self) -> list[str]:
        if not self.conversation.tools:
            return []
        bare = Conversation(self.messages, None, self.conversation.options)
        with contextlib.suppress(BadRow):
            return ["tools"] if self.reader.template.render(bare) == self._real else []
        return []


def _habits(reader: AnswerReader) -> Habits:
    """Learn what a template writes around plain answers, from exchanges that it must be able to write.

    Raises:
        DataError: the text up to the question depends on the answer.
    """
    template = reader.template
    turns = tuple(Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(EXCHANGE))
    headers, afters, ends = [], [], []
    prompts = False
    for length in (4, 2):
        conversation = template.conversation(Record(None, "", turns[:length], None))
        try:
            stretches = _Stretches(reader, conversation, template.render(conversation))
        except BadRow:
            if length == 2:
                raise
            continue  # a template of single exchanges
        for answer in stretches.answers()[0]:
            base, forms = stretches.question(answer.turn)
            if not forms and length > 2:
                continue  # longer conversations are read row by row
            if not forms:
                raise DataError(
                    f"{template.name}: the chat template is not prefix-stable: in a plain exchange of two turns the "
                    "text up to the question depends on the answer, so the model would not see in use what it is "
                    "trained on; give model.chat_template a file with one that is"
                )
            prompts |= len(set(forms)) > 1
            start = answer.start if prompts else stretches.first_word(answer.turn)
            gap = stretches.text[base:start]
            headers.append(gap[common(gap, forms[0]) :])
            afters.append(gap)
            special = [match[0] for match in PRIVATE.finditer(stretches.text, answer.stop, answer.end)]
            ends.append(special[-1] if special else "")
    header = functools.reduce(shared, headers)
    header = without_thought(template, reader.vocabulary, header) if header.strip() else ""
    return Habits(functools.reduce(shared, afters), header, ends[0], prompts)
