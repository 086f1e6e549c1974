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
