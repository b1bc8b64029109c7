# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, freethreading_compatible=True
"""From logits to a token: penalties, filters and the draw, the same bits on every machine.

Order of work, as in transformers: logit bias, penalties, temperature, top-k, top-p, min-p, draw.
Everything that decides is exact or a single IEEE operation: logits are compared as integers, the
probabilities of the softmax that is handed in become integer weights (multiples of 2^-52), and
sums of integers have no order. Survivors stay in the order of their ids, so ties fall to the
lower id, and nothing is ever sorted: a radix search finds the one value where a filter cuts.

The GIL is not held but for a softmax that is written in Python, as tests hand in.

Random numbers come from Philox4x64-10 (`_philox.pxd`), one per token. Compile with floating-point
contraction off: the draw has no multiplication that feeds an addition, but `logsumexp` has.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from slmq.generation._mask cimport mask_blocks
from slmq.generation._math64 cimport exp_double, log_double
from slmq.generation._philox cimport draw_word, high_product, philox
from slmq.generation._selection cimport (
    BLOCK, MINUS_INFINITY, PLUS_INFINITY, first_with, scan, select_top,
)
from slmq.generation._weights cimport keep_mass, keep_near_top, pick, shift, shift_all, weigh

import threading

import numpy as np

from slmq.errors import CheckpointError

cdef double LARGEST_FLOAT = 3.4028234663852886e38


# The kernel: y = softmax(x * scale) of n values.
ctypedef void (*SoftmaxFunction)(const float* x, int n, float scale, float* y) noexcept nogil

# What `Sampler.choose` returns in the place of a token.
cdef int64_t UNUSABLE = -1     # a logit is NaN or infinite, or all are ruled out
cdef int64_t NO_WEIGHT = -2    # no token has a positive probability
cdef int64_t RAISED = -3       # a softmax in Python raised


# ---------------------------------------------------------------- random numbers

def philox4x64(counter, key):
    """One block of Philox4x64-10, for checking against published vectors."""
    cdef uint64_t block[4]
    cdef int i
    for i in range(4):
        block[i] = counter[i]
    philox(block, key[0], key[1])
    return block[0], block[1], block[2], block[3]


def random_word(uint64_t seed, uint64_t index):
    """The 64-bit number that draw `index` of `seed` consumes."""
    return draw_word(seed, index)


# ---------------------------------------------------------------- log-probabilities

def logsumexp(logits):
    """log(sum(exp(logits))) in float64; every log-probability is a logit minus this.

    Parameters
    ----------
    logits : numpy.ndarray
        float32[n], at least one finite, no NaN.
    """
    cdef const float[::1] given = _checked(logits, -1)
    cdef Py_ssize_t i, block, size, n = given.shape[0]
    cdef const float* x = &given[0]
    cdef double[BLOCK] terms
    cdef double total = 0.0
    cdef float top = x[0]
    with nogil:
        for i in range(n):
            top = x[i] if x[i] > top else top
        for block in range((n + BLOCK - 1) // BLOCK):
            size = min(BLOCK, n - block * BLOCK)
            for i in range(size):
                terms[i] = exp_double(<double>x[block * BLOCK + i] - <double>top)
            for i in range(size):
                total += terms[i]
        total = log_double(total)
    return <double>top + total


def top_ids(logits, Py_ssize_t k):
    """Ids of the k greatest finite logits, greatest first, lower ids first among equals."""
    cdef const float[::1] given = _checked(logits, -1)
    cdef Py_ssize_t n = given.shape[0], count = 0
    cdef int32_t[::1] block_max = np.empty((n + BLOCK - 1) // BLOCK, np.int32)
    cdef int32_t[::1] ids = np.empty(n, np.int32)
    cdef int32_t[::1] members = np.empty(n, np.int32)
    cdef uint32_t[::1] keys = np.empty(n, np.uint32)
    if k <= 0:
        return []
    with nogil:
        scan(&given[0], n, &block_max[0])
        count = select_top(&given[0], n, &block_max[0], k, &ids[0], &keys[0], &members[0])
    chosen = np.asarray(ids[:count])
    return chosen[np.lexsort((chosen, ~np.asarray(keys[:count])))].tolist()


def _checked(logits, Py_ssize_t n):
    """`logits` if it is a contiguous float32 vector (of n values, unless n is negative)."""
    want = f"float32[{'n' if n < 0 else n}]"
    if not isinstance(logits, np.ndarray):
        raise TypeError(f"logits: expected {want}, got {type(logits).__name__}")
    if logits.dtype != np.float32 or logits.ndim != 1 or (n >= 0 and logits.size != n):
        shape = ", ".join(map(str, logits.shape))
        raise ValueError(f"logits: expected {want}, got {logits.dtype}[{shape}]")
    if not logits.flags.c_contiguous or not logits.flags.aligned:
        raise ValueError(f"logits: expected {want} without gaps, got strides {logits.strides}")
    if logits.size == 0:
        raise ValueError(f"logits: expected {want}, got an empty array")
    return logits


# ---------------------------------------------------------------- room to work in

cdef class Bench:
    """Arrays that a draw writes before it reads: up to 48 bytes a token of the vocabulary.

    Samplers share one of the thread that draws. With one each, 500 answers that wait would hold
    a gigabyte for a vocabulary of 50,000 tokens, and five for one of 260,000.
    """

    cdef Py_ssize_t n_vocab
    cdef object shifted_array
    cdef int32_t[::1] block_max, ids, members
    cdef float[::1] adjusted, shifted, p
    cdef uint32_t[::1] keys
    cdef uint64_t[::1] weights, heavy

    def __init__(self, Py_ssize_t n):
        self.n_vocab = n
        self.block_max = np.empty((n + BLOCK - 1) // BLOCK, np.int32)
        self.ids = np.empty(n, np.int32)
        self.members = np.empty(n, np.int32)
        self.adjusted = np.empty(n, np.float32)
        self.shifted_array = np.empty(n, np.float32)
        self.shifted = self.shifted_array
        self.p = np.empty(n, np.float32)
        self.keys = np.empty(n, np.uint32)
        self.weights = np.empty(n, np.uint64)
        self.heavy = np.empty(n, np.uint64)


_of_thread = threading.local()


cdef Bench take_bench(Py_ssize_t n_vocab):
    """This thread's, which nobody else has until `_of_thread.bench` is set again."""
    bench = getattr(_of_thread, "bench", None)
    _of_thread.bench = None     # a softmax in Python may draw, too
    if bench is None or (<Bench>bench).n_vocab < n_vocab:
        bench = Bench(n_vocab)
    return bench


# ---------------------------------------------------------------- the sampler

cdef class Sampler:
    """Draws the tokens of one answer; holds its random state and its penalty counts.

    Parameters
    ----------
    n_vocab : int
        Length of the logits.
    softmax : int or callable
        Address of the native kernel (`_native.softmax_address`), or
        ``softmax(x: float32[n], scale: float) -> float32[n]``, the probabilities of x * scale.
    temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty
        As in `slmq.generation.sampling.SamplingParams`, which validates them.
    logit_bias : mapping of int to float, optional
        Added to the logits; -inf bans a token.
    seed : int
        Key of the random numbers; 0 to 2**64 - 1.

    Attributes
    ----------
    draws : int
        Random numbers consumed so far: one per sampled token, none when greedy.
    """

    cdef readonly Py_ssize_t n_vocab
    cdef readonly uint64_t seed
    cdef readonly uint64_t draws
    cdef object _softmax, _raised
    cdef dict _places
    cdef SoftmaxFunction _kernel
    cdef bint _greedy, _biased, _penalised
    cdef Py_ssize_t _top_k, _n_seen
    cdef float _scale, _repetition
    cdef double _presence, _frequency, _top_p, _min_p
    cdef int32_t[::1] _bias_ids, _seen, _times
    cdef float[::1] _biases

    def __init__(
        self, Py_ssize_t n_vocab, softmax, *, double temperature=0.0, Py_ssize_t top_k=0,
        double top_p=1.0, double min_p=0.0, double repetition_penalty=1.0,
        double presence_penalty=0.0, double frequency_penalty=0.0, logit_bias=None,
        uint64_t seed=0,
    ):
        if not 0 < n_vocab < 2**31:
            raise ValueError(f"n_vocab: expected 1 to 2**31 - 1, got {n_vocab}")
        self.n_vocab = n_vocab
        self.seed = seed
        self.draws = 0
        self._softmax = softmax
        self._kernel = <SoftmaxFunction><uintptr_t>softmax if isinstance(softmax, int) else NULL
        self._greedy = temperature == 0.0
        self._scale = 0.0 if self._greedy else <float>min(1.0 / temperature, LARGEST_FLOAT)
        self._top_k = top_k if 0 < top_k < n_vocab else 0
        self._top_p = top_p
        self._min_p = min_p
        self._repetition = <float>repetition_penalty
        # float32 values: their products with a count are exact in float64, however compiled.
        self._presence = <float>presence_penalty
        self._frequency = <float>frequency_penalty
        self._penalised = (
            repetition_penalty != 1.0 or presence_penalty != 0.0 or frequency_penalty != 0.0
        )
        self._set_bias(logit_bias or {})
        # The tokens of prompt and answer: where each stands, which it is, how often generated.
        self._n_seen, self._places = 0, {}
        self._seen, self._times = np.empty(64, np.int32), np.empty(64, np.int32)

    def _set_bias(self, logit_bias):
        for token in logit_bias:
            if not 0 <= token < self.n_vocab:
                raise ValueError(
                    f"logit_bias: expected token ids from 0 to {self.n_vocab - 1}, got {token}"
                )
        self._biased = bool(logit_bias)
        self._bias_ids = np.array(list(logit_bias), np.int32)
        self._biases = np.array(list(logit_bias.values()), np.float32)

    def observe(self, tokens):
        """Notes the tokens of the prompt, which only the repetition penalty counts."""
        if self._penalised:
            for token in tokens:
                self._note(token, 0)

    def accept(self, token):
        """Notes a generated token, which all three penalties count."""
        if self._penalised:
            self._note(token, 1)

    cdef int _note(self, Py_ssize_t token, int32_t times) except -1:
        if not 0 <= token < self.n_vocab:
            raise ValueError(f"token: expected 0 to {self.n_vocab - 1}, got {token}")
        place = self._places.setdefault(token, self._n_seen)
        if place == self._n_seen:
            if place == self._seen.shape[0]:
                self._seen = np.resize(self._seen, 2 * place)
                self._times = np.resize(self._times, 2 * place)
            self._seen[place], self._times[place] = <int32_t>token, 0
            self._n_seen += 1
        self._times[<Py_ssize_t>place] += times
        return 0

    def sample(self, logits, allowed=None):
        """The next token for these logits; consumes one random number unless greedy.

        Parameters
        ----------
        logits : numpy.ndarray
            float32[n_vocab]; not changed.
        allowed : numpy.ndarray, optional
            int32[ceil(n_vocab / 32)]: bit i % 32 of word i // 32 says whether token i may be
            chosen. It applies before bias and filters; the logits that are left keep their values.

        Returns
        -------
        int
            The token id. It is not noted for the penalties: see `accept`.

        Raises
        ------
        CheckpointError
            If the model gives NaN, an infinite logit, or rules every token out.
        TypeError, ValueError
            If an array has another type or length, or no token is left to choose from.
        """
        chosen = sample_rows([self], _checked(logits, self.n_vocab)[None], [allowed])[0]
        if isinstance(chosen, BaseException):
            raise chosen
        return chosen

    def guess(self, logits, uint64_t ahead):
        """What `sample` would give for these logits `ahead` draws later; consumes nothing.

        Returns
        -------
        int or None
            None where `sample` would raise for the logits.
        """
        cdef uint64_t draws = self.draws
        self.draws = draws + ahead
        try:
            return self.sample(logits)
        except (CheckpointError, ValueError):
            return None
        finally:
            self.draws = draws

    cdef const int32_t* _mask(self, allowed) except? NULL:
        """The words of a mask that lives on."""
        cdef const int32_t[::1] words
        if allowed is None:
            return NULL
        wanted = (self.n_vocab + 31) // 32
        if (
            not isinstance(allowed, np.ndarray) or allowed.dtype != np.int32
            or allowed.shape != (wanted,) or not allowed.flags.c_contiguous
        ):
            raise ValueError(f"allowed: expected int32[{wanted}], got {allowed!r:.80}")
        words = allowed
        return &words[0]

    cdef int64_t choose(
        self, const float* given, const int32_t* mask, Bench bench
    ) noexcept nogil:
        """The token for these logits, or UNUSABLE, NO_WEIGHT or RAISED."""
        cdef const float* x = given
        cdef bint adjusted = self._biased or self._penalised
        cdef Py_ssize_t best
        cdef int32_t top, bottom
        if mask != NULL or not adjusted:
            # Before anything is ruled out: a model that says NaN is damaged, whatever the mask.
            top, bottom = scan(given, self.n_vocab, &bench.block_max[0])
            if top >= PLUS_INFINITY or bottom < MINUS_INFINITY:
                return UNUSABLE
        if mask != NULL:
            x = &bench.adjusted[0]
            top = mask_blocks(
                given, mask, self.n_vocab, &bench.adjusted[0], &bench.block_max[0]
            )
        if adjusted:
            x = self._adjust(x, bench)
            top, bottom = scan(x, self.n_vocab, &bench.block_max[0])
            if top >= PLUS_INFINITY or bottom < MINUS_INFINITY:
                return UNUSABLE
        if top == MINUS_INFINITY:
            return UNUSABLE
        best = first_with(x, self.n_vocab, &bench.block_max[0], top)
        return best if self._greedy else self._draw(x, x[best], bench)

    cdef const float* _adjust(self, const float* x, Bench bench) noexcept nogil:
        """Bias and penalties, in a copy of the logits."""
        cdef float* y = &bench.adjusted[0]
        cdef Py_ssize_t i, at
        cdef double value
        if x != y:
            memcpy(y, x, self.n_vocab * sizeof(float))
        for i in range(self._bias_ids.shape[0]):
            y[self._bias_ids[i]] += self._biases[i]
        for i in range(self._n_seen):
            at = self._seen[i]
            y[at] = y[at] / self._repetition if y[at] > 0.0 else y[at] * self._repetition
            if self._times[i] > 0:
                value = <double>y[at] - <double>self._times[i] * self._frequency
                y[at] = <float>(value - self._presence)
        return y

    cdef int64_t _draw(self, const float* x, float top, Bench bench) noexcept nogil:
        """Filters and draws."""
        cdef Py_ssize_t count
        cdef uint64_t total, word
        if self._top_k > 0:
            count = select_top(
                x, self.n_vocab, &bench.block_max[0], self._top_k, &bench.ids[0],
                &bench.keys[0], &bench.members[0],
            )
            count = shift(x, &bench.ids[0], count, top, self._scale, &bench.shifted[0])
        else:
            count = shift_all(
                x, self.n_vocab, &bench.block_max[0], top, self._scale, &bench.ids[0],
                &bench.shifted[0],
            )
        if self._kernel != NULL:
            self._kernel(&bench.shifted[0], <int>count, self._scale, &bench.p[0])
        elif not self._python_softmax(count, bench):
            return RAISED
        total = weigh(&bench.p[0], count, &bench.weights[0])
        if self._top_p < 1.0 and total > 0:
            total = keep_mass(
                &bench.p[0], &bench.weights[0], count, total, self._top_p, &bench.members[0],
                &bench.keys[0], &bench.heavy[0],
            )
        if self._min_p > 0.0:
            total = keep_near_top(&bench.p[0], &bench.weights[0], count, self._min_p)
        if total == 0:
            return NO_WEIGHT
        word = draw_word(self.seed, self.draws)
        self.draws += 1
        return bench.ids[pick(&bench.weights[0], count, high_product(word, total))]

    cdef bint _python_softmax(self, Py_ssize_t count, Bench bench) noexcept with gil:
        """Whether it worked; else its error is kept for whoever called."""
        try:
            p = self._softmax(bench.shifted_array[:count], self._scale)
            if p.shape[0] != count:
                raise ValueError(f"softmax: expected float32[{count}], got float32[{p.shape[0]}]")
            np.asarray(bench.p)[:count] = p
        except BaseException as error:
            self._raised = error
            return False
        return True

    cdef object result(self, int64_t chosen, logits):
        """What a choice means: a token, or the error that it stands for."""
        if chosen == UNUSABLE:
            return _unusable(logits)
        if chosen == NO_WEIGHT:
            return ValueError("softmax gave no token a positive probability")
        if chosen == RAISED:
            error, self._raised = self._raised, None
            return error
        return chosen


def sample_rows(samplers, logits, allowed=None):
    """One token for each row, without the GIL while they are chosen.

    Parameters
    ----------
    samplers : sequence of Sampler
        Of the rows; different ones, all of this vocabulary.
    logits : numpy.ndarray
        float32[rows, n_vocab]; not changed.
    allowed : sequence of (numpy.ndarray or None), optional
        A mask for each row, as `Sampler.sample` takes it.

    Returns
    -------
    list of (int or Exception)
        A token, or the error that `Sampler.sample` would raise, row by row.
    """
    cdef Sampler one
    cdef Py_ssize_t i, rows = len(samplers)
    if not isinstance(logits, np.ndarray) or logits.dtype != np.float32 or logits.ndim != 2:
        raise TypeError("logits: expected float32[rows, n_vocab]")
    if logits.shape[0] != rows or (allowed is not None and len(allowed) != rows):
        raise ValueError(f"expected {rows} rows of logits and masks, as there are samplers")
    if rows == 0:
        return []
    if any((<Sampler?>s).n_vocab != logits.shape[1] for s in samplers):
        raise ValueError(f"expected samplers of {logits.shape[1]} tokens")
    if len(set(map(id, samplers))) != rows:
        raise ValueError("expected different samplers, a sampler draws one token at a time")
    if not logits.flags.c_contiguous or not logits.flags.aligned:
        raise ValueError("logits: expected an array without gaps")
    cdef const float[:, ::1] given = logits
    cdef void** each = <void**>malloc(rows * sizeof(void*))
    cdef const int32_t** masks = <const int32_t**>malloc(rows * sizeof(void*))
    cdef int64_t* chosen = <int64_t*>malloc(rows * sizeof(int64_t))
    cdef Bench bench = take_bench(logits.shape[1])
    try:
        if each == NULL or masks == NULL or chosen == NULL:
            raise MemoryError
        for i in range(rows):
            one = samplers[i]
            each[i] = <void*>one
            masks[i] = one._mask(None if allowed is None else allowed[i])
        with nogil:
            for i in range(rows):
                chosen[i] = (<Sampler>each[i]).choose(&given[i, 0], masks[i], bench)
        return [(<Sampler>samplers[i]).result(chosen[i], logits[i]) for i in range(rows)]
    finally:
        _of_thread.bench = bench
        free(each)
        free(masks)
        free(chosen)


def _unusable(logits):
    """The error for logits that no token can be chosen from."""
    if np.isnan(logits).any():
        count = int(np.isnan(logits).sum())
        return CheckpointError(
            f"the model produced NaN in {count} of {logits.size} logits; "
            "its weights are damaged or overflow in this format"
        )
    if np.isposinf(logits).any():
        return CheckpointError(
            "the model produced an infinite logit; its weights are damaged or overflow"
        )
    if np.isneginf(logits).all():
        return CheckpointError("the model ruled out every token: all logits are -inf")
    return ValueError(
        "no token is left to choose from: a constraint, logit_bias and penalties made a logit "
        "infinite or banned every token"
    )
