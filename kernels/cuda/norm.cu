// The one read of the gradients before a step, and what follows from it: a factor for each leaf, or no step at all.

// A gradient from one of its elements on, of which one is read at a time.
template <class real, class G>
struct Source {
    const G* g;
    DEVICE Source(u64 home, i64 first)
        : g(static_cast<const G*>(__cvta_global_to_generic(home + first * i64(sizeof(G))))) {}
    DEVICE void read(bool there, int i, real& x) const { decode(there ? g[i] : G(), x); }
};
template <class real, class S>
struct Source<real, several<S>> {
    Arrays arrays;
    i64 first;
    DEVICE Source(const Arrays& home, i64 from) : arrays(home), first(from) {}
    DEVICE void read(bool there, int i, real& x) const {
        x = 0;
        for (i64 j = 0; there && j < arrays.count; ++j) {
            real one;
            Source<real, S>(arrays.at[j * arrays.apart], first).read(true, i, one);
            x = j > 0 ? x + one : one;
        }
    }
};

// Note the squares of every block of every gradient and its largest magnitude: one block of LANES threads each. Both,
// though skipping alone asks for no squares: the read is what costs, and one text serves both.
template <class Table, class real, class G>
DEVICE void measure(const Chunk* blocks, const Table& table, Note* notes, i64 block) {
    __shared__ Lanes<2> lanes;
    const Chunk own = blocks[block];
    const bool there = rows_of(table)[own.leaf] >= 0;
    const Source<real, G> g(home_of<G>(table, own.leaf), own.first);
    together(LANES, [&](int thread) {
        Lane<real> lane;
#pragma unroll
        for (int k = 0; k < BLOCK / LANES; ++k)
            g.read(there && thread + k * LANES < own.n, thread + k * LANES, lane.x[k]);
        lanes.of[0][thread] = lane.squares(), lanes.of[1][thread] = lane.largest();
    });
    lanes.combine(LANES);
    together(LANES, [&](int thread) {
        if (thread == 0) notes[block] = {lanes.of[0][0], 0, 0, lanes.of[1][0]};
    });
}

// Notes that lie together, of one leaf.
struct Piece {
    i64 first, count;
};

// Add notes up in pairs of neighbours, pairs of pairs, ..., in place; those between have been from `from` notes on.
DEVICE void add_up(const Piece* pieces, Note* notes, i64 from, i64 block, int threads) {
    const Piece own = pieces[block];
    Note* note = notes + own.first;
    for (i64 apart = from; apart < own.count; apart *= 2)
        together(threads, [&](int thread) {
            for (i64 k = 2 * apart * thread; k + apart < own.count; k += 2 * apart * threads) {
                Note &a = note[k], &b = note[k + apart];
                a = {a.squares_of_g + b.squares_of_g, a.squares_of_p + b.squares_of_p,
                     a.squares_of_update + b.squares_of_update, maximum(a.largest, b.largest)};
            }
        });
}

// What a step is judged by, and where the judgement goes.
struct Case {
    i64 leaves, groups;
    const i64 *notes_of, *group_from;  // a leaf's first note, -1: none; each group's first leaf, and the end
    const f64* asked;  // |scale| for the norm, scale for the rows, whether to skip, the limit of all, of each group (0: none)
    const Note* notes;
    f64* room;         // twice the leaves
    Ruling* rulings;   // by leaf
    f64* found;        // the norm, whether any gradient is not finite, each group's factor, each leaf's largest magnitude
};

// values[0] <- the sum of these, in pairs of neighbours.
DEVICE void in_pairs(f64* values, i64 count, int threads) {
    for (i64 apart = 1; apart < count; apart *= 2)
        together(threads, [&](int thread) {
            for (i64 k = 2 * apart * thread; k + apart < count; k += 2 * apart * threads)
                values[k] = values[k] + values[k + apart];
        });
}

// min(1, limit / norm); NaN goes on to the parameters.
DEVICE f64 factor(f64 norm, f64 limit) {
    return limit > 0 && (norm > limit || norm != norm) ? limit / norm : 1;
}

DEVICE void judge(const Case& c, int threads) {
    __shared__ Lanes<1> lanes;
    f64 *largest = c.found + 2 + c.groups, *own = c.room + c.leaves;
    together(threads, [&](int thread) {
        for (i64 leaf = thread; leaf < c.leaves; leaf += threads) {
            const i64 at = c.notes_of[leaf];
            c.room[leaf] = own[leaf] = at < 0 ? f64(0) : c.notes[at].squares_of_g;
            largest[leaf] = at < 0 ? f64(0) : c.notes[at].largest;
        }
    });
    together(threads, [&](int thread) {
        for (int lane = thread; lane < LANES; lane += threads) {
            f64 most = 0;
            for (i64 leaf = lane; leaf < c.leaves; leaf += LANES) most = maximum(largest[leaf], most);
            lanes.of[0][lane] = most;
        }
    });
    lanes.combine(threads);
    in_pairs(c.room, c.leaves, threads);
    for (i64 k = 0; k < c.groups; ++k) in_pairs(own + c.group_from[k], c.group_from[k + 1] - c.group_from[k], threads);
    together(threads, [&](int thread) {
        if (thread > 0) return;
        const f64 most = lanes.of[0][0];
        c.found[1] = most - most != 0 ? 1 : 0;
        const f64 norm = c.leaves > 0 ? c.asked[0] * sqrt(c.room[0]) : f64(0);
        c.found[0] = norm;
        for (i64 k = 0; k < c.groups; ++k) {
            const bool empty = c.group_from[k] == c.group_from[k + 1];
            const f64 mine = c.asked[4 + k], size = empty ? f64(0) : c.asked[0] * sqrt(own[c.group_from[k]]);
            c.found[2 + k] = mine > 0 ? factor(size, mine) : factor(norm, c.asked[3]);
        }
    });
    together(threads, [&](int thread) {
        const bool skip = c.asked[2] > 0 && c.found[1] > 0;
        for (i64 k = 0; k < c.groups; ++k)
            for (i64 leaf = c.group_from[k] + thread; leaf < c.group_from[k + 1]; leaf += threads)
                c.rulings[leaf].scale = c.asked[1], c.rulings[leaf].factor = c.found[2 + k], c.rulings[leaf].skip = skip;
    });
}

// Of a step of leaves whose sums go over all: where these are noted, and what is carried on from step to step.
struct Common {
    i64 leaves;
    const i64* notes_of;  // a leaf's first note, -1: none
    const Note* notes;
    f64* room;            // twice the leaves
    Ruling* rulings;      // by leaf
    f64* carried;
    const f64* asked;     // what the kernel's judge must know
};

// Let every leaf's Ruling have what was carried and what is carried on. A leaf that takes no step has noted zeros.
template <class K>
DEVICE void weigh_together(const Common& c, int threads) {
    const f64 before = c.carried[0];
    f64* sums[2] = {c.room, c.room + c.leaves};
    together(threads, [&](int thread) {
        for (i64 leaf = thread; leaf < c.leaves; leaf += threads) {
            const i64 at = c.notes_of[leaf];
            sums[0][leaf] = at < 0 ? f64(0) : c.notes[at].squares_of_g;
            sums[1][leaf] = at < 0 ? f64(0) : c.notes[at].squares_of_p;
        }
    });
    in_pairs(sums[0], c.leaves, threads), in_pairs(sums[1], c.leaves, threads);
    together(threads, [&](int thread) {
        if (thread > 0) return;
        typename K::Judging told;
#pragma unroll
        for (int k = 0; k < int(sizeof(told) / sizeof(f64)); ++k) reinterpret_cast<f64*>(&told)[k] = c.asked[k];
        const f64 one = sum_of({sums[0][0], 0, 0, 0}, 0, Sums<K>::norms & 1);
        const f64 two = sum_of({0, sums[1][0], 0, 0}, 1, Sums<K>::norms & 2);
        K::judged(one, two, c.carried[0], c.carried[1], c.carried[2], told);
    });
    together(threads, [&](int thread) {
        for (i64 leaf = thread; leaf < c.leaves; leaf += threads)
            c.rulings[leaf].before = before, c.rulings[leaf].judged = c.carried[0];
    });
}

// Each leaf's statistics.
DEVICE void totals(const Case& c, Note* found, int threads) {
    together(threads, [&](int thread) {
        for (i64 leaf = thread; leaf < c.leaves; leaf += threads)
            found[leaf] = c.notes_of[leaf] < 0 ? Note{0, 0, 0, 0} : c.notes[c.notes_of[leaf]];
    });
}

// Count a step: steps taken, steps that are ready, steps skipped.
DEVICE void advance_unless(i64* at, const Ruling& ruling) {
    if (ruling.skip) at[2] += at[0] < at[1];
    else at[0] += 1;
}

#ifndef MEASURE
#define MEASURE(name, Table, real, G)                                                                             \
    extern "C" __global__ void name(const Chunk* blocks, const __grid_constant__ Table table, Note* notes) {      \
        measure<Table, real, G>(blocks, table, notes, blockIdx.x);                                                \
    }
#define ADD_UP(name) \
    extern "C" __global__ void name(const Piece* p, Note* notes, i64 from) { add_up(p, notes, from, blockIdx.x, blockDim.x); }
#define JUDGE(name) \
    extern "C" __global__ void name(const __grid_constant__ Case c) { judge(c, blockDim.x); }
#define WEIGH_TOGETHER(name, K) \
    extern "C" __global__ void name(const __grid_constant__ Common c) { weigh_together<K>(c, blockDim.x); }
#define TOTALS(name) \
    extern "C" __global__ void name(const __grid_constant__ Case c, Note* found) { totals(c, found, blockDim.x); }
#define ADVANCE_UNLESS(name) \
    extern "C" __global__ void name(i64* at, const Ruling* ruling) { advance_unless(at, *ruling); }
#endif
