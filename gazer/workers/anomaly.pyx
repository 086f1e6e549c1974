"""The names of the anomalies, in the order of the enum in anomaly.pxd."""

NAMES = (
    "ok",
    "short_header",
    "truncated",
    "counts",
    "snapped",
    "pointer_loop",
    "bad_label",
    "name_too_long",
    "rdlength",
    "bad_rdata",
    "trailing",
)

assert len(NAMES) == ANOMALIES

cdef const char* C_NAMES[ANOMALIES]
_kept = [name.encode() for name in NAMES]       # the bytes that C_NAMES points into
cdef int _i
for _i in range(ANOMALIES):
    C_NAMES[_i] = _kept[_i]


cdef const char* anomaly_name(int anomaly) noexcept nogil:
    return C_NAMES[anomaly]
