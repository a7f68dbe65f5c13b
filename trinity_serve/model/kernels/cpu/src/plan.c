/* Rows of one layer grouped by (shard, expert): a counting sort over owners and experts.
 *
 * The twin of router/plan.py and equal to it number for number: shards ascending, within one the
 * experts ascending, within an expert the tokens. S shards, G groups, N rows, T tokens.
 */
#include <string.h>

#include "runtime.h"

enum { MAX_EXPERTS = 4096 };

/* Written by the call; arrays are the caller's. Layout: `trinity_serve/model/fused/planner.py`. */
struct ts_plan {
    int64_t num_shards, num_groups;
    int64_t *shards;      /* S x 5: position, first group, first row, first token, end of tokens */
    int32_t *expert_ids;  /* G */
    int32_t *row_offsets; /* G + S, 2 G at most: of shard i from first group + i on, counted from
                             its own rows */
    int32_t *token_idx;   /* N: among the shard's tokens */
    int64_t *tokens;      /* the distinct tokens of each shard, ascending; N at most */
    int64_t *row_of_slot; /* N */
    int32_t *place;       /* T, scratch */
};

enum { POSITION, FIRST_GROUP, FIRST_ROW, FIRST_TOKEN, END_TOKEN, FIELDS };

/* Rows per expert; TS_BAD_INDEX for an expert out of range or without an owner. */
static int count_rows(const int64_t *ids, long n, long experts, const int32_t *owner, int32_t *count)
{
    memset(count, 0, (size_t)experts * sizeof *count);
    for (long i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= experts || owner[ids[i]] < 0)
            return TS_BAD_INDEX;
        count[ids[i]]++;
    }
    return TS_OK;
}

/* Number the distinct tokens of rows [begin, end), which hold token numbers; return the new end. */
static long number_tokens(const struct ts_plan *plan, long begin, long end, long tokens, long at)
{
    long first = at;
    memset(plan->place, 0, (size_t)tokens * sizeof *plan->place);
    for (long row = begin; row < end; row++)
        plan->place[plan->token_idx[row]] = 1;
    for (long token = 0; token < tokens; token++)
        if (plan->place[token]) {
            plan->place[token] = (int32_t)(at - first);
            plan->tokens[at++] = token;
        }
    for (long row = begin; row < end; row++)
        plan->token_idx[row] = plan->place[plan->token_idx[row]];
    return at;
}

/* Lay out the groups of the shard at `position`; return how many there are. */
static long lay_out(const struct ts_plan *plan, int position, const int32_t *owner, long experts,
                    const int32_t *count, int32_t *next, long group, long row)
{
    long first_group = group, first_row = row;
    int32_t *offsets = plan->row_offsets + group + plan->num_shards;
    for (long e = 0; e < experts; e++) {
        if (owner[e] != position || count[e] == 0)
            continue;
        plan->expert_ids[group] = (int32_t)e;
        offsets[group++ - first_group] = (int32_t)(row - first_row);
        next[e] = (int32_t)row;
        row += count[e];
    }
    offsets[group - first_group] = (int32_t)(row - first_row);
    return group - first_group;
}

static int32_t last_position(const int32_t *owner, long experts)
{
    int32_t last = -1;
    for (long e = 0; e < experts; e++)
        last = owner[e] > last ? owner[e] : last;
    return last;
}

TS_API int ts_plan_rows(const int64_t *ids, long tokens, long top_k, const int32_t *owner,
                        long experts, struct ts_plan *plan)
{
    int32_t count[MAX_EXPERTS], next[MAX_EXPERTS];
    long n = tokens * top_k, group = 0, row = 0, token = 0;
    if (experts > MAX_EXPERTS || count_rows(ids, n, experts, owner, count) != TS_OK)
        return TS_BAD_INDEX;
    int32_t last = last_position(owner, experts);
    plan->num_shards = 0;
    for (int32_t position = 0; position <= last && row < n; position++) {
        long groups = lay_out(plan, position, owner, experts, count, next, group, row);
        if (groups == 0)
            continue;
        int64_t *shard = plan->shards + FIELDS * plan->num_shards;
        shard[POSITION] = position;
        shard[FIRST_GROUP] = group;
        shard[FIRST_ROW] = row;
        row += plan->row_offsets[group + plan->num_shards + groups];
        group += groups;
        plan->num_shards++;
    }
    plan->num_groups = group;
    for (long i = 0; i < n; i++) {
        int32_t at = next[ids[i]]++;
        plan->token_idx[at] = (int32_t)(i / top_k);
        plan->row_of_slot[i] = at;
    }
    for (long i = 0; i < plan->num_shards; i++) {
        int64_t *shard = plan->shards + FIELDS * i;
        long end = i + 1 < plan->num_shards ? shard[FIELDS + FIRST_ROW] : n;
        shard[FIRST_TOKEN] = token;
        shard[END_TOKEN] = token = number_tokens(plan, shard[FIRST_ROW], end, tokens, token);
    }
    return TS_OK;
}
