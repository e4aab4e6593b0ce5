import unittest

import run


def line(single, batch, p50, runs=100):
    words = {"peer": "P", "version": "1", "server": "S 2", "done": "seen", "durability": "fsync"}
    return {**words, "single": single, "batch": batch, "p50_ms": p50, "p99_ms": 2 * p50, "runs": runs}


class WhatIsPrinted(unittest.TestCase):
    def test_each_figure_has_a_median_of_its_own(self):
        merged = run.medians([line(1, 30, 5), line(3, 10, 4), line(2, 20, 9)])
        self.assertEqual([merged["single"], merged["batch"], merged["p50_ms"]], [2, 20, 5])

    def test_a_peer_without_batches_has_no_median_of_them(self):
        self.assertIsNone(run.medians([line(1, None, 5), line(3, None, 4)])["batch"])

    def test_a_ratio_is_ours_by_theirs(self):
        self.assertEqual(run.ratios(line(300, 900, 2), line(100, None, 4)), "3.00 / - / 0.50")
        self.assertEqual(run.ratios(line(300, 900, 2), line(0, 1800, 1)), "- / 0.50 / 2.00")

    def test_the_table_has_all_lines_in_order_with_their_ratios(self):
        lines = {"Restate": line(500, None, 4), run.SQLITE: line(1000, 3000, 2), run.POSTGRES: line(250, 1500, 8)}
        rows = run.table(lines, {"pg-boss, polling": "no | way"}).splitlines()
        self.assertEqual(len(rows), 6)
        ours = f"| {run.SQLITE} (1, S 2) | 1,000 | 3,000 | 2.00 | 4.00 | 100 |  |  | seen | fsync |"
        self.assertEqual(rows[2], ours)
        self.assertTrue(rows[4].startswith("| pg-boss, polling | failed: no \\| way |"))
        self.assertIn("| 2.00 / - / 0.50 | 0.50 / - / 2.00 |", rows[5])
        self.assertEqual({row.replace("\\|", "").count("|") for row in rows}, {len(run.HEADER) + 1})


class WhatIsRead(unittest.TestCase):
    def test_the_reason_is_the_error_above_its_stack(self):
        self.assertEqual(run.reason("x:1\n\nTypeError: no\n    at f (x.mjs:1)\n\nNode.js v1\n"), "TypeError: no")
        self.assertEqual(run.reason("one\nerror: broken\n"), "error: broken")
        self.assertEqual(run.reason("one\ntwo\n"), "two")
        self.assertEqual(run.reason(""), "")

    def test_restates_durability_is_that_of_its_log_server(self):
        off, on = "rocksdb-disable-wal-fsync = true\n", "rocksdb-disable-wal-fsync = false\n"
        settings = f"[other]\n{off}\n[log-server]\na = 1\n{on}\n[x]\n"
        self.assertIn("=false", run.restate_durability(settings))
        self.assertIn("=?", run.restate_durability(f"[log-server]\n[x]\n{off}"))

    def test_errands_figures_are_of_both_its_runs(self):
        def bench(rate, p50):
            words = {"version": "1", "nats_server": "2", "durability": {"commit": "c", "broker": "b"}}
            loaded, unloaded = {"runs": 9, "runs_per_second": rate}, {"p50_ms": p50, "p99_ms": 8}
            return {**words, "unloaded": unloaded, "loaded": loaded}

        figures = run.errand_figures(bench(10, 1), bench(20, 99))
        self.assertEqual([figures[name] for name in run.FIGURES], [10, 20, 1, 8, 9])


if __name__ == "__main__":
    unittest.main()
