package SyTest::HomeserverFactory::Hanok;

# Makes the servers for SyTest's option '-I Hanok'.

use strict;
use warnings;
use parent -norequire, 'SyTest::HomeserverFactory';

use SyTest::HomeserverFactory;
use SyTest::Homeserver::Hanok;

# SyTest runs some tests only for implementations it knows by name. This one turns on those
# of registration with a shared secret.
sub implementation_name { return 'dendrite' }

sub _init
{
   my ( $self, @rest ) = @_;
   $self->{launch} = $ENV{HANOK_LAUNCH};
   return $self->SUPER::_init( @rest );
}

sub get_options
{
   my ( $self ) = @_;
   return ( 'launch=s' => \$self->{launch}, $self->SUPER::get_options );
}

sub print_usage
{
   print STDERR "   --launch FILE - starts a server from its environment; otherwise \$HANOK_LAUNCH\n";
}

sub create_server
{
   my ( $self, %params ) = @_;
   die "Say with --launch or HANOK_LAUNCH which program starts a server\n" unless $self->{launch};
   return SyTest::Homeserver::Hanok->new( %params, launch => $self->{launch} );
}

1;
