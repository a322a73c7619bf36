// stargz-snapshotter as a proxy plugin of containerd, with the defaults of its library: a lazy peer to compare with.
package main

import (
	"context"
	"flag"
	"net"
	"os"
	"os/signal"
	"syscall"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/log"
	"github.com/containerd/stargz-snapshotter/service"
	"google.golang.org/grpc"
)

func main() {
	address := flag.String("address", "", "socket to listen at")
	root := flag.String("root", "", "directory for its state")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	snapshotter, err := service.NewStargzSnapshotterService(ctx, *root, &service.Config{})
	if err != nil {
		log.G(ctx).WithError(err).Fatal("no snapshotter")
	}
	listener, err := net.Listen("unix", *address)
	if err != nil {
		log.G(ctx).WithError(err).Fatal("no socket")
	}
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	go func() {
		<-ctx.Done()
		server.Stop()
	}()
	if err := server.Serve(listener); err != nil {
		log.G(ctx).WithError(err).Error("ended")
	}
	if err := snapshotter.Close(); err != nil {
		log.G(ctx).WithError(err).Error("not closed cleanly")
		os.Exit(1)
	}
}
