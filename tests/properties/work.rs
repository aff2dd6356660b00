//! The worst messages that are known, held to a budget of steps for each of their bytes. In the
//! released program instructions are counted, see `tests/load/guard.rs`.

use super::inputs::work::{ask, respond};
use super::worst_case::{worst, worst_bodies};

fn check(steps: impl Fn(&[u8], &[usize]) -> u64, start: &str) {
    for (name, head) in worst(start) {
        let bytes = head.as_bytes();
        let lines: Vec<usize> = head.match_indices('\n').map(|(at, _)| at + 1).collect();
        let each_byte: Vec<usize> = (1..=bytes.len()).collect();
        for (how, ends, most) in
            [("whole", vec![bytes.len()], 24), ("by lines", lines, 64), ("by bytes", each_byte, 72)]
        {
            let steps = steps(bytes, &ends);
            assert!(steps > 0);
            let each = steps / bytes.len() as u64;
            println!("{name}, {how}: {each} steps for each of {} bytes", bytes.len());
            let budget = 2_000 + most * bytes.len() as u64;
            assert!(steps <= budget, "{name}, {how}: {each} steps for a byte");
        }
    }
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "steps are counted in debug builds alone")]
fn the_worst_request_heads_cost_a_bounded_number_of_steps_for_each_byte() {
    check(ask, "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\n");
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "steps are counted in debug builds alone")]
fn the_worst_response_heads_cost_a_bounded_number_of_steps_for_each_byte() {
    check(respond, "HTTP/1.1 200 OK\r\n");
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "steps are counted in debug builds alone")]
fn chunk_extensions_tiny_chunks_and_trailers_cost_a_bounded_number_of_steps_for_each_byte() {
    let head = "Transfer-Encoding: chunked\r\n\r\n";
    for (_, body) in worst_bodies() {
        let request = format!("POST /v1/responses HTTP/1.1\r\nHost: localhost\r\n{head}{body}");
        let response = format!("HTTP/1.1 200 OK\r\n{head}{body}");
        for (steps, text) in [(ask as fn(&[u8], &[usize]) -> u64, request), (respond, response)] {
            for step in [text.len(), 1] {
                let ends: Vec<usize> = (step..=text.len()).step_by(step).collect();
                let steps = steps(text.as_bytes(), &ends);
                assert!(steps <= 2_000 + 24 * text.len() as u64, "{steps} for {}", text.len());
            }
        }
    }
}
