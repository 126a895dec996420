/* Forbids tokens in logits. The logits are in the model's format or in float, so their width is an argument. */

/* Defines a function that writes `lowest` where the mask's bit is 0. Most bytes of a mask are 0 or 255. */
#define DEFINE_FORBID(name, type)                                                                             \
    static void name(type *logits, const uint8_t *mask, int64_t vocab, type lowest) {                         \
        for (int64_t byte = 0; byte < vocab / 8; byte++, logits += 8) {                                       \
            if (mask[byte] == 255) continue;                                                                  \
            if (mask[byte] == 0)                                                                              \
                for (int bit = 0; bit < 8; bit++) logits[bit] = lowest;                                       \
            else                                                                                              \
                for (int bit = 0; bit < 8; bit++)                                                             \
                    if (!(mask[byte] >> bit & 1)) logits[bit] = lowest;                                       \
        }                                                                                                     \
        for (int bit = 0; bit < vocab % 8; bit++)                                                             \
            if (!(mask[vocab / 8] >> bit & 1)) logits[bit] = lowest;                                          \
    }

DEFINE_FORBID(forbid_in_row_of_16, uint16_t)
DEFINE_FORBID(forbid_in_row_of_32, uint32_t)

/* Sets logits of `count` rows to -infinity, whose bits are `lowest`, where a bit of the row's mask is 0: bit
 * token % 8 of byte token / 8. `width` is the number of bits of a logit: 16 or 32. */
void forbid(void *logits, int64_t stride, const int64_t *rows, int64_t count, const uint8_t *masks,
            int64_t mask_bytes, int64_t vocab, int64_t width, int64_t lowest) {
    for (int64_t i = 0; i < count; i++, masks += mask_bytes)
        if (width == 16)
            forbid_in_row_of_16((uint16_t *)logits + rows[i] * stride, masks, vocab, (uint16_t)lowest);
        else
            forbid_in_row_of_32((uint32_t *)logits + rows[i] * stride, masks, vocab, (uint32_t)lowest);
}
