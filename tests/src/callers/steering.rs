//! An address that another server holds is served by our listener, and goes back to it afterwards.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::time::Duration;

use integration_tests::gate;
use weft_agent::ebpf::callers::{Callers, Identity, SteerError, Steered};

use super::world::World;

const PM3: &str = "127.0.3.3:80";

/// A listener on another port that answers as pm3 would, for one address that is steered to it.
struct Pm3 {
    steered: Option<Steered>,
    who: std::sync::mpsc::Receiver<Identity>,
}

impl Pm3 {
    fn start(callers: &Callers, address: SocketAddr) -> Self {
        let listener = TcpListener::bind((address.ip(), 0)).expect("free");
        let steered = callers.steer(address, listener.as_fd()).expect("steered");
        let (tx, who) = std::sync::mpsc::channel();
        let callers = callers.clone();
        // Ends with the test program: it waits for a connection.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                tx.send(answer(&callers, stream)).ok();
            }
        });
        Self { steered: Some(steered), who }
    }
}

fn answer(callers: &Callers, mut stream: TcpStream) -> Identity {
    let (peer, local) = (stream.peer_addr().expect("accepted"), stream.local_addr().expect("accepted"));
    let identity = callers.of(stream.as_fd(), peer, local);
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
    let read = stream.read(&mut [0; 1024]).expect("a request");
    assert!(read > 0);
    let body = format!("pm3 at {local}");
    let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    stream.write_all(reply.as_bytes()).expect("it reads");
    identity
}

#[test]
fn nginx_on_every_address_and_pm3_work_on_one_host() {
    if !gate::root_and(&["nginx", "curl"]) {
        return;
    }
    World::run(|world| async move {
        let callers = world.start().await;
        world.here.run(&["ip", "address", "add", "10.94.0.1/24", "dev", "lo"]).expect("added");
        let outcome = world.blocking(move |world| {
            let _nginx = world.nginx("0.0.0.0:80", "location / { return 200 nginx; }");
            let mesh: SocketAddr = "10.94.0.1:80".parse().expect("an address");
            let mut pm3 = Pm3::start(&callers, PM3.parse().expect("an address"));
            let on_mesh = Pm3::start(&callers, mesh);
            let curl = |url: &str| world.here.run(&["curl", "--silent", "--show-error", "--max-time", "20", url]);
            assert_eq!(curl("http://127.0.3.3/ping").expect("answered"), "pm3 at 127.0.3.3:80");
            assert_eq!(curl("http://10.94.0.1/ping").expect("answered"), "pm3 at 10.94.0.1:80");
            assert_eq!(curl("http://127.0.0.1/").expect("answered"), "nginx");
            let who = pm3.who.recv().expect("it was called");
            assert!(who.verdict.is_internal, "{who:?}");
            assert!(on_mesh.who.recv().expect("it was called").verdict.is_internal);
            let other = TcpListener::bind("127.0.3.3:0").expect("free");
            let taken = callers.steer(mesh, other.as_fd()).map(drop);
            assert!(matches!(taken, Err(SteerError::Taken(address)) if address == mesh), "{taken:?}");
            drop(pm3.steered.take());
            assert_eq!(curl("http://127.0.3.3/ping").expect("answered"), "nginx", "it has the address again");
        });
        outcome.await;
    });
}
